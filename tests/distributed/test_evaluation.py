"""What processes that share a model's weights measure together is what one process measures alone."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.alike import assert_alike
from tests.distributed.runs import MODES, SmallRun
from tests.machine import needs_deepspeed
from tests.process import lora_dpo

pytestmark = pytest.mark.slow

MEASURED = ("multiple_choice", "preference", "generation", "cost")


@pytest.mark.parametrize("name", ["ddp", pytest.param("zero3", marks=needs_deepspeed)])
def test_two_processes_measure_what_one_does(name: str, tiny_models, tmp_path: Path) -> None:
    mode = MODES[name]
    data = {"path": "bundled/misconceptions", "limit": 40, "split": {"test": 0.3, "validation": 0.1}}
    train = {"max_steps": 2, "evals_per_epoch": 0, "save_steps": None}
    options = {"samples": 3, "max_new_tokens": 4}
    run = SmallRun(tmp_path, tiny_models(mode.architecture), data=data, train=train, evaluation=options)
    done = run.start(mode)
    assert done.returncode == 0, done.stderr[-3000:]
    together = json.loads((run.path / "report.json").read_text(encoding="utf-8"))
    shutil.rmtree(run.path / "evaluation")  # where the values are kept that need not be computed again
    alone = lora_dpo("eval", run.path, "--json", cwd=tmp_path, CUDA_VISIBLE_DEVICES="", OMP_NUM_THREADS="1")
    assert alone.returncode == 0, alone.stderr
    again = json.loads(alone.stdout)
    assert together["multiple_choice"]["mc2"]["n"] == 12
    assert_alike([together[part] for part in MEASURED], [again[part] for part in MEASURED])
    assert together["samples"] == again["samples"]
