"""What one node starts, where there are no GPUs to start anything on."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from lora_dpo.cluster import node
from lora_dpo.cluster.job import TrainingJob
from lora_dpo.cluster.nodes import Nodes
from lora_dpo.errors import UserError

WORDS = ["recipe.yaml"]


@pytest.fixture
def training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TrainingJob:
    """A job on one node without a GPU."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(node, "gpu_count", lambda: 0)
    for name in ("PROCESSES_PER_NODE", "SLURM_GPUS_ON_NODE", "LORA_DPO_STAGE"):
        monkeypatch.delenv(name, raising=False)
    Path("recipe.yaml").write_text(yaml.safe_dump({"model": {"name": "m"}, "run": {"name": "r"}}))
    return TrainingJob.of(WORDS)


def test_gpus_that_slurm_has_given_but_nobody_sees(training: TrainingJob, monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = Nodes.of()
    assert "single.yaml" in " ".join(node.plan(training, WORDS, nodes).command)
    monkeypatch.setenv("SLURM_GPUS_ON_NODE", "4")
    with pytest.raises(UserError, match=f"There is no GPU on {nodes.name}, where Slurm has given the job 4"):
        node.plan(training, WORDS, nodes)
    monkeypatch.setenv("PROCESSES_PER_NODE", "1")
    assert "single.yaml" in " ".join(node.plan(training, WORDS, nodes).command)


def test_a_recipe_that_is_not_there_is_a_mistake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        node.main(["nothing.yaml"])
    assert ended.value.code == 2
    assert "Error: " in capfd.readouterr().err
