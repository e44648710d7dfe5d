"""Every strategy makes the steps that one process makes, saves a whole adapter, and plain PEFT loads it.

Started with the shipped files of accelerate_configs/. FSDP2 is Accelerate's own code over gloo: it believes that the
processes have GPUs (`train_small.as_on_gpus`), without which it runs DDP instead.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from tests.conftest import REPOSITORY
from tests.machine import needs_deepspeed
from tests.process import run_python

pytestmark = pytest.mark.slow

TRAIN = {"max_steps": 30, "global_batch_size": 6, "learning_rate": 1e-3, "warmup": 0.0, "evals_per_epoch": 0}
SHORT = {**TRAIN, "max_steps": 10}
CHECKPOINTED = {**SHORT, "gradient_checkpointing": True}
BFLOAT16 = {"dtype": "bfloat16"}
JOBS: dict[str, tuple[str, dict[str, Any]]] = {
    "gemma2": ("gemma2", {"train": TRAIN}),
    "gpt2": ("gpt2", {"train": TRAIN}),
    "llama": ("llama", {"train": TRAIN}),
    "short": ("gemma2", {"train": SHORT}),
    "checkpointed": ("gemma2", {"train": CHECKPOINTED}),
    "bfloat16": ("llama", {"train": CHECKPOINTED, "model": BFLOAT16}),
    "qlora": ("llama", {"train": SHORT, "adapter": {"method": "qlora"}}),
}
"""Architecture and recipe. The window of the tiny Gemma-2 is 16 tokens, shorter than the data."""
STRATEGIES = {
    "single": tuple(JOBS),
    "cpu_ddp": ("gemma2", "gpt2", "llama", "qlora"),
    "cpu_zero2": ("gemma2", "gpt2", "llama", "qlora"),
    "cpu_zero3": ("gemma2", "gpt2", "llama", "short", "checkpointed", "bfloat16"),
    "cpu_zero3_offload": ("checkpointed",),
    "fsdp2": ("gemma2", "gpt2", "llama", "checkpointed", "bfloat16"),
}
CASES = [(strategy, job) for strategy, jobs in STRATEGIES.items() if strategy != "single" for job in jobs]
EXACT = ("gemma2", "gpt2", "llama", "short", "checkpointed")
TYPES = {
    "cpu_ddp": "MULTI_CPU",
    "cpu_zero2": "DEEPSPEED",
    "cpu_zero3": "DEEPSPEED",
    "cpu_zero3_offload": "DEEPSPEED",
    "fsdp2": "FSDP",
}


@dataclass(frozen=True)
class Trained:
    """What a training left."""

    log: dict[str, Any]
    folder: Path

    def series(self, key: str) -> torch.Tensor:
        values = [entry[key] for entry in self.log["log"] if key in entry]
        assert len(values) == self.log["log"][-1]["step"] >= 10
        return torch.tensor(values, dtype=torch.float64)


@pytest.fixture(scope="module")
def trained(tiny_models, tmp_path_factory: pytest.TempPathFactory):
    """Returns a function to what came out of a job; a strategy's jobs share one start of its processes."""
    known: dict[str, Path] = {}

    def result(strategy: str, job: str) -> Trained:
        if strategy not in known:
            known[strategy] = tmp_path_factory.mktemp(strategy)
            start(strategy, known[strategy], tiny_models)
        folder = known[strategy] / job
        return Trained(json.loads((folder / "log.json").read_text()), folder)

    return result


def start(strategy: str, folder: Path, tiny_models) -> None:
    jobs = []
    for name in STRATEGIES[strategy]:
        architecture, sections = JOBS[name]
        (folder / name).mkdir()
        jobs.append({"model": str(tiny_models(architecture)), "folder": str(folder / name), "sections": sections})
    words = ["-m", "accelerate.commands.launch"]
    words += ["--config_file", str(REPOSITORY / "accelerate_configs" / f"{strategy}.yaml")]
    if strategy != "single":
        words += ["--num_processes", "2", "--main_process_port", "0"]
    if "zero" in strategy:
        file = f"{strategy.removeprefix('cpu_')}.json"
        words += ["--deepspeed_config_file", str(REPOSITORY / "ds_configs" / file)]
    script = str(REPOSITORY / "tests" / "distributed" / "train_small.py")
    done = run_python(*words, script, json.dumps(jobs), cwd=folder, CUDA_VISIBLE_DEVICES="", OMP_NUM_THREADS="1")
    assert done.returncode == 0, done.stderr[-4000:]


def needs(strategy: str) -> Any:
    return needs_deepspeed if "zero" in strategy else ()


@pytest.mark.parametrize(("strategy", "job"), [pytest.param(*case, marks=needs(case[0])) for case in CASES])
def test_the_trajectory_is_that_of_one_process(strategy: str, job: str, trained) -> None:
    found, alone = trained(strategy, job), trained("single", job)
    assert (found.log["world"], found.log["strategy"]) == (2, f"DistributedType.{TYPES[strategy]}")
    # bfloat16 rounds a product to three digits, and adapters on 4-bit models are in bfloat16 as well.
    tolerance = 1e-4 if job in EXACT else 5e-3
    assert torch.equal(found.series("num_tokens"), alone.series("num_tokens"))  # the same pairs in the same steps
    difference = found.series("loss") - alone.series("loss")
    assert difference.abs().max() < tolerance
    assert difference.mean().abs() < tolerance
    assert alone.series("loss")[-4:].mean() < alone.series("loss")[:4].mean() - 0.02
    assert found.log["reference"] == pytest.approx(alone.log["reference"], abs=1e-3)


@pytest.mark.parametrize(("strategy", "job"), [pytest.param(*case, marks=needs(case[0])) for case in CASES])
def test_the_saved_adapter_is_whole(strategy: str, job: str, trained) -> None:
    found, alone = (
        load_file(trained(name, job).folder / "saved" / "adapter_model.safetensors") for name in (strategy, "single")
    )
    assert found.keys() == alone.keys()
    assert sum(tensor.numel() for tensor in found.values()) > 1000
    relative = 1e-3 if job in EXACT else 0.2
    for name, tensor in alone.items():
        assert found[name].shape == tensor.shape
        assert (found[name].float() - tensor.float()).norm() < relative * tensor.float().norm(), name


LOADED = [(name, "gemma2") for name in ("cpu_ddp", "cpu_zero2", "cpu_zero3", "fsdp2")]
LOADED += [("cpu_zero3_offload", "checkpointed"), ("cpu_zero3", "bfloat16"), ("fsdp2", "bfloat16")]


@pytest.mark.parametrize(("strategy", "job"), [pytest.param(*case, marks=needs(case[0])) for case in LOADED])
def test_plain_peft_scores_as_the_training_did(strategy: str, job: str, trained, tiny_models) -> None:
    """An adapter that two processes trained gives on one the log-probs that one process's adapter gives."""
    architecture = JOBS[job][0]
    ids = torch.arange(5, 45)[None]
    scores = []
    for name in (strategy, "single"):
        base = AutoModelForCausalLM.from_pretrained(tiny_models(architecture), attn_implementation="eager")
        plain = base(ids).logits.log_softmax(-1)
        tuned = PeftModel.from_pretrained(base, trained(name, job).folder / "saved").eval()
        with torch.no_grad():
            scores.append(tuned(ids).logits.log_softmax(-1))
        assert (scores[-1] - plain).abs().max() > 1e-2
    assert (scores[0] - scores[1]).abs().max() < (1e-4 if job in EXACT else 2e-2)


@needs_deepspeed
def test_checkpointing_changes_nothing_under_zero3(trained) -> None:
    plain, recomputed = (trained("cpu_zero3", job).series("loss") for job in ("short", "checkpointed"))
    assert (plain - recomputed).abs().max() < 1e-6


def test_fsdp_divided_the_weights(trained) -> None:
    assert trained("fsdp2", "llama").log["divided"] > 40
    assert trained("cpu_ddp", "llama").log["divided"] == 0
