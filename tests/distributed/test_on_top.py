"""DPO on a merged adapter where the weights that it is merged into are divided over processes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model, load_peft_weights
from transformers import AutoModelForCausalLM

from tests.distributed.runs import Mode, SmallRun
from tests.machine import needs_deepspeed

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def below(tiny_models, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random adapter."""
    model = AutoModelForCausalLM.from_pretrained(tiny_models("llama"))
    torch.manual_seed(5)
    made = get_peft_model(
        model, LoraConfig(task_type="CAUSAL_LM", r=3, lora_alpha=6, target_modules=["q_proj", "up_proj"])
    )
    for name, value in made.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(value, std=0.1)
    folder = tmp_path_factory.mktemp("below")
    made.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def whole(below: Path, tiny_models, tmp_path_factory: pytest.TempPathFactory) -> SmallRun:
    """The run on one process."""
    return run_of(Mode("llama"), below, tiny_models, tmp_path_factory.mktemp("one"))


def run_of(mode: Mode, below: Path, tiny_models, folder: Path) -> SmallRun:
    adapter = {"init_from": str(below), "init_mode": "merge", "r": 4, "alpha": 8}
    train = {"epochs": 1, "global_batch_size": 4, "learning_rate": 1e-2, "keep_checkpoints": 0}
    run = SmallRun(folder, tiny_models("llama"), adapter=adapter, train=train)
    done = run.start(mode)
    assert done.returncode == 0, done.stderr[-3000:]
    return run


@pytest.mark.parametrize("config", [pytest.param("cpu_zero3", marks=needs_deepspeed), "fsdp2"])
def test_divided_weights_take_the_adapter(
    config: str, below: Path, whole: SmallRun, tiny_models, tmp_path: Path
) -> None:
    run = run_of(Mode("llama", 2, config), below, tiny_models, tmp_path)
    one, two = ([entry for entry in each.outcome()["metrics"] if entry["phase"] == "train"] for each in (whole, run))
    assert two[0]["loss"] == pytest.approx(0.693147, abs=1e-4)
    assert [entry["loss"] for entry in two] == pytest.approx([entry["loss"] for entry in one], abs=1e-4)
    first, second = (load_peft_weights(str(each.path / "adapter")) for each in (whole, run))
    assert first.keys() == second.keys()
    for name, value in first.items():
        torch.testing.assert_close(second[name], value, atol=1e-3, rtol=0)
    assert json.loads((run.path / "adapter" / "adapter_config.json").read_text())["r"] == 7
