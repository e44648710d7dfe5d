"""Small whole runs in processes of their own, and what of two runs must be equal."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tests.process import ROOT

SAVE_STEPS = 3
WALL_TIMES = ("tokens_per_second", "pairs_per_second", "runtime", "samples_per_second", "steps_per_second")
FAULTY = ROOT / "tests" / "distributed" / "faulty.py"


@dataclass(frozen=True, slots=True)
class Mode:
    """How a small run is started.

    Attributes:
        architecture: Of the tiny model.
        world: Processes.
        words: Overrides of the recipe.
    """

    architecture: str
    world: int
    words: tuple[str, ...] = ()


ZERO = {stage: f"train.trl.deepspeed={ROOT}/ds_configs/zero{stage}.json" for stage in (2, 3)}
MODES = {
    "single": Mode("llama", 1),
    "ddp": Mode("gemma2", 2, ("train.logging_steps=2",)),
    "zero2": Mode("llama", 2, (ZERO[2], "train.logging_steps=2")),
    "zero3": Mode("gemma2", 2, (ZERO[3],)),
}


class SmallRun:
    """A recipe of some twelve steps for a tiny model, and the run that is made of it.

    Args:
        folder: Where recipe, data and run go.
        model: Folder of a tiny model.
        sections: Sections of the recipe that replace or add keys.
    """

    def __init__(self, folder: Path, model: Path, **sections: dict[str, Any]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.path = folder / "runs" / "small"
        rows = [
            {"prompt": f"What is {n}?", "chosen": "one " * (1 + n % 5), "rejected": "Two." + " So they say." * (n % 3)}
            for n in range(24)
        ]
        (folder / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        values: dict[str, dict[str, Any]] = {
            "model": {"name": str(model)},
            "adapter": {"r": 4, "alpha": 8},
            "data": {"path": "data.jsonl", "split": {"test": 0.1, "validation": 0.15}},
            "dpo": {"max_length": 128},
            "train": {
                "global_batch_size": 4,
                "learning_rate": 1e-2,
                "epochs": 3,
                "save_steps": SAVE_STEPS,
                "evals_per_epoch": 2,
                "hang_timeout": "60s",
            },
            "evaluation": {"samples": 1, "max_new_tokens": 2},
            "run": {"name": "small"},
        }
        for section, keys in sections.items():
            values[section] = {**values.get(section, {}), **keys}
        (folder / "recipe.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")

    def start(
        self,
        world: int = 1,
        *overrides: str,
        fault: dict[str, Any] | None = None,
        timeout: float = 180,
        **environment: str,
    ) -> subprocess.CompletedProcess[str]:
        """Runs the recipe on so many processes, until it ends or `fault` strikes."""
        process = self.spawn(world, *overrides, fault=fault, **environment)
        try:
            out, err = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            raise
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    def spawn(
        self, world: int = 1, *overrides: str, fault: dict[str, Any] | None = None, **environment: str
    ) -> subprocess.Popen[str]:
        """Starts the recipe on so many processes, in a process group of their own."""
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(world)] if world > 1 else []
        env = {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "COLUMNS": "120",
            "TERM": "dumb",
            "OMP_NUM_THREADS": "1",
            "LORA_DPO_CACHE": str(self.folder / "cache"),  # where other runs have computed nothing
            "FAULT": json.dumps(fault or {}),
            **environment,
        }
        return subprocess.Popen(
            [sys.executable, *launcher, str(FAULTY), "recipe.yaml", *overrides],
            cwd=self.folder,
            env=env,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )

    def outcome(self) -> dict[str, Any]:
        """Returns what must not depend on how often the run was interrupted."""
        lines = (self.path / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        metrics = [{key: v for key, v in json.loads(line).items() if key not in WALL_TIMES} for line in lines]
        report = json.loads((self.path / "report.json").read_text(encoding="utf-8"))
        return {
            "adapter": hashlib.sha256((self.path / "adapter" / "adapter_model.safetensors").read_bytes()).hexdigest(),
            "metrics": metrics,
            "report": {key: report[key] for key in ("preference", "samples")},
        }

    def checkpoints(self) -> list[int]:
        """Returns the steps that have a checkpoint."""
        return sorted(int(path.name[5:]) for path in (self.path / "checkpoints").glob("step-*"))
