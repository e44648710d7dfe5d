"""A user on the login node of the emulated cluster: recipes of tiny models, and lora-dpo's own verbs."""

from __future__ import annotations

import json
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lora_dpo.cluster.record import Record
from lora_dpo.recipe.run_folder import RunFolder
from tests.process import lora_dpo
from tests.slurm.cluster import Cluster

RECIPE = """
model: {{name: {model}}}
adapter: {{r: 4, alpha: 8}}
data: {{limit: 24}}
dpo: {{max_length: 256}}
train: {{global_batch_size: 4, learning_rate: 1e-3, max_steps: 2, evals_per_epoch: 0, save_steps: 1}}
evaluation: {{samples: 1, max_new_tokens: 2}}
run: {{name: {name}}}
slurm: {{gpus_per_node: 0, time: "02:00:00"}}
"""


@dataclass(frozen=True, slots=True)
class Login:
    """A working directory on the login node.

    Attributes:
        cluster: The cluster.
        folder: The working directory, which all nodes see.
        environment: Variables of the user's shell besides the test's own.
    """

    cluster: Cluster
    folder: Path
    environment: dict[str, str] = field(default_factory=dict)

    def recipe(self, name: str, model: Path) -> str:
        """Writes a recipe of two steps, and returns its name."""
        (self.folder / f"{name}.yaml").write_text(RECIPE.format(model=model, name=name), encoding="utf-8")
        return f"{name}.yaml"

    def call(self, *words: str, code: int = 0) -> subprocess.CompletedProcess[str]:
        """Calls `lora-dpo`, and checks its exit code."""
        variables = {"HF_HUB_OFFLINE": "1", **self.cluster.environment, **self.environment}
        done = lora_dpo(*words, cwd=self.folder, **variables)
        assert done.returncode == code, f"lora-dpo {' '.join(words)}\n{done.stdout}\n{done.stderr}"
        return done

    def submit(self, *words: str) -> list[str]:
        """Submits a run, and returns the numbers of its jobs."""
        found = json.loads(self.call("submit", *words, "--json").stdout)
        return [job["job"] for job in found["jobs"]]

    def status(self, run: str) -> dict[str, Any]:
        """Returns what `lora-dpo status --json` says of a run."""
        return json.loads(self.call("status", run, "--json").stdout)

    def events(self, run: str, event: str) -> list[dict[str, Any]]:
        """Returns a run's events of one kind."""
        return [each for each in Record(self.run(run)).events() if each["event"] == event]

    def run(self, name: str) -> RunFolder:
        """Returns one of the runs."""
        return RunFolder(self.folder / "runs" / name)

    def wait(self, jobs: list[str]) -> list[str]:
        """Waits until jobs have ended, and returns their states."""
        return [self.cluster.wait(job)["JobState"] for job in jobs]
