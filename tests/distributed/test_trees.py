"""Two real processes train over trees as one process does: the same steps, losses, metrics and weights."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conftest import REPOSITORY
from tests.machine import needs_deepspeed
from tests.process import run_python

pytestmark = pytest.mark.slow

# 11 pairs, 7 a step: the last step of an epoch has 4, fewer than its micro-batches if each has one pair.
TRAIN = {"max_steps": 6, "global_batch_size": 7, "learning_rate": 1e-3, "eval_steps": 3, "warmup": 0.0}


def run(
    world: int, model: Path, folder: Path, sections: dict[str, Any]
) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    folder.mkdir()
    given = [json.dumps([{"model": str(model), "folder": str(folder), "sections": sections}])]
    script = str(REPOSITORY / "tests" / "distributed" / "train_small.py")
    start = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(world)] if world > 1 else []
    done: subprocess.CompletedProcess[str] = run_python(*start, script, *given, cwd=folder)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads((folder / "log.json").read_text()), torch.load(folder / "adapter.pt")


def series(log: list[dict[str, float]], key: str) -> list[float]:
    return [entry[key] for entry in log if key in entry]


def check_equal(found: tuple, expected: tuple, tolerance: float) -> None:
    (result, weights), (reference, reference_weights) = found, expected
    assert result["reference"] == pytest.approx(reference["reference"], abs=1e-4)
    for key in ("loss", "rewards/margins", "entropy", "eval_loss", "eval_rewards/margins", "eval_rewards/accuracies"):
        assert len(series(reference["log"], key)) >= 2
        assert series(result["log"], key) == pytest.approx(series(reference["log"], key), abs=tolerance), key
    assert series(result["log"], "num_tokens") == series(reference["log"], "num_tokens")
    assert weights.keys() == reference_weights.keys()
    for name, value in reference_weights.items():
        assert (weights[name].float() - value.float()).abs().max() < tolerance, name


@pytest.fixture(scope="module")
def alone(tiny_models, tmp_path_factory: pytest.TempPathFactory):
    """Returns a function to what one process makes of a setting."""
    known: dict[str, tuple] = {}

    def result(sections: dict[str, Any], architecture: str = "llama") -> tuple:
        key = json.dumps([architecture, sections])
        if key not in known:
            folder = tmp_path_factory.mktemp("alone") / "run"
            known[key] = run(1, tiny_models(architecture), folder, sections)
        return known[key]

    return result


SETTINGS = {
    "cached, by tokens": {"train": {**TRAIN, "tokens_per_micro_batch": 120}},
    "live, one pair at a time": {
        "train": {**TRAIN, "global_batch_size": 6, "micro_batch_size": 1},
        "dpo": {"reference": "live"},
    },
    "means over prompts": {"train": {**TRAIN, "weight": "group"}},
}


@pytest.mark.parametrize("setting", SETTINGS)
def test_two_processes_make_the_steps_of_one(setting: str, tiny_models, tmp_path: Path, alone) -> None:
    found = run(2, tiny_models("llama"), tmp_path / "run", SETTINGS[setting])
    assert (found[0]["world"], found[0]["strategy"]) == (2, "DistributedType.MULTI_CPU")
    check_equal(found, alone(SETTINGS[setting]), 2e-5)


@needs_deepspeed
@pytest.mark.parametrize("stage", [2, 3])
@pytest.mark.parametrize("architecture", ["llama", "gemma2"])
def test_zero(stage: int, architecture: str, tiny_models, tmp_path: Path, alone) -> None:
    sections = {"train": {**TRAIN, "tokens_per_micro_batch": 120}}
    expected = alone(sections, architecture)
    sections["train"]["trl"] = {"deepspeed": str(REPOSITORY / "ds_configs" / f"zero{stage}.json")}
    found = run(2, tiny_models(architecture), tmp_path / "run", sections)
    assert (found[0]["world"], found[0]["strategy"]) == (2, "DistributedType.DEEPSPEED")
    check_equal(found, expected, 5e-5)


@needs_deepspeed
def test_a_head_that_is_divided_and_trained(tiny_models, tmp_path: Path, alone) -> None:
    """ZeRO-3 gives the whole model's weights back after the forward pass, and the head's gradient needs them again."""
    sections = {"train": {**TRAIN, "tokens_per_micro_batch": 120}, "adapter": {"method": "full"}}
    expected = alone(sections)
    sections["train"]["trl"] = {"deepspeed": str(REPOSITORY / "ds_configs" / "zero3.json")}
    check_equal(run(2, tiny_models("llama"), tmp_path / "run", sections), expected, 5e-5)
