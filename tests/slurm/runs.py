"""Small trainings as jobs of the emulated cluster."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from lora_dpo.cluster.record import Record
from lora_dpo.recipe.run_folder import RunFolder
from tests.distributed.runs import SmallRun
from tests.process import ROOT
from tests.slurm.cluster import Cluster

TRAIN = ROOT / "slurm" / "train.sbatch"
STAGE = ROOT / "slurm" / "stage.sbatch"


class ClusterRun(SmallRun):
    """A recipe of a tiny model, submitted as a user does: from the folder that it lies in.

    Args:
        cluster: Where it runs.
        folder: Where recipe, data and run go.
        model: Folder of a tiny model.
        sections: Sections of the recipe that replace or add keys.
    """

    def __init__(self, cluster: Cluster, folder: Path, model: Path, **sections: dict[str, Any]) -> None:
        super().__init__(folder, model, **sections)
        self.cluster = cluster
        self.job = ""
        self.nodes = "node1,node2"

    def submit(self, *flags: str, each: int = 1, words: tuple[str, ...] = (), **environment: str) -> str:
        """Submits the training on `nodes`, `each` processes a node, and returns the job's number."""
        where = (f"--nodelist={self.nodes}", f"--nodes={self.nodes.count(',') + 1}")
        resources = (*where, "--gpus-per-node=0", "--cpus-per-task=1", "--mem=900", "--time=60")
        env = {"PROCESSES_PER_NODE": str(each), "OMP_NUM_THREADS": "1", "LORA_DPO_CACHE": str(self.folder / "cache")}
        env |= {"PYTHONPATH": str(ROOT), "COLUMNS": "120", **environment}
        self.job = self.cluster.sbatch(*resources, *flags, TRAIN, "recipe.yaml", *words, cwd=self.folder, **env)
        return self.job

    def at_step(self, number: int) -> None:
        """Waits until the run, which still goes on then, has a checkpoint of a step as late as that."""

        def is_there() -> bool:
            state = self.cluster.job(self.job)["JobState"]
            assert state in ("PENDING", "RUNNING", "COMPLETING"), (
                f"{state} before step {number}:\n{self.output[-3000:]}"
            )
            return max(self.checkpoints(), default=0) >= number

        self.cluster.until(is_there, f"step {number} of {self.folder}")

    def ended(self) -> dict[str, str]:
        """Waits until the job has ended, and returns what Slurm says of it."""
        return self.cluster.wait(self.job)

    def events(self, event: str | None = None) -> list[dict[str, Any]]:
        """Returns what the record of the run's jobs holds."""
        return [line for line in Record(RunFolder(self.path)).events() if event in (None, line["event"])]

    def starts(self) -> list[tuple[Any, ...]]:
        """Returns of each start how it ended: cause, whether it was requeued, exit code."""
        return [(line["cause"], line["requeued"], line["exit_code"]) for line in self.events("ended")]

    @property
    def output(self) -> str:
        """What the job has printed."""
        return "".join(file.read_text(errors="replace") for file in sorted(self.folder.glob("lora-dpo-*.out")))

    @property
    def adapter(self) -> bytes:
        """The trained weights."""
        assert (self.path / "report.json").is_file(), self.output[-6000:]
        return (self.path / "adapter" / "adapter_model.safetensors").read_bytes()

    def losses(self) -> list[float]:
        """Returns the logged losses of the training."""
        lines = (self.path / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        return [line["loss"] for line in map(json.loads, lines) if line.get("phase") == "train" and "loss" in line]
