"""Two real processes share the work, and find what one finds."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lora_dpo.evaluation.work import Work
from tests.alike import assert_alike
from tests.conftest import REPOSITORY
from tests.evaluation.judges.models import save_encoder
from tests.evaluation.measure_small import measure
from tests.process import run_python

pytestmark = pytest.mark.slow


def test_two_processes_find_what_one_finds(tiny_models, tmp_path: Path) -> None:
    model, encoder = tiny_models("llama"), save_encoder(tmp_path / "encoder")
    script = REPOSITORY / "tests" / "evaluation" / "measure_small.py"
    launch = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")
    done = run_python(*launch, script, model, encoder, tmp_path, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1))
    assert first.pop("world") == second.pop("world") == 2
    assert first == second
    assert_alike(first, measure(model, encoder, Work()))
    shares = {file.name: len(file.read_text().split("\n")) - 1 for file in (tmp_path / "kept").glob("*answers*")}
    assert sorted(shares.values()) == [2, 2, 2, 2, 3, 3, 3, 3]  # of five questions, four times
