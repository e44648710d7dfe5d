"""Small whole runs in processes of their own, and what of two runs must be equal."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import yaml

from tests.process import PATIENCE, ROOT

SAVE_STEPS = 3
WALL_TIMES = (
    "tokens_per_second",
    "pairs_per_second",
    "examples_per_second",
    "runtime",
    "samples_per_second",
    "steps_per_second",
)
FAULTY = ROOT / "tests" / "distributed" / "faulty.py"


def kill_all(launcher: int) -> None:
    """Kills a launcher and everything below it; torchrun gives each process a session of its own."""
    with suppress(psutil.NoSuchProcess):
        process = psutil.Process(launcher)
        for each in [process, *process.children(recursive=True)]:
            with suppress(psutil.NoSuchProcess):
                each.kill()


@dataclass(frozen=True, slots=True)
class Mode:
    """How a small run is started.

    Attributes:
        architecture: Of the tiny model.
        world: Processes.
        config: File of accelerate_configs/ that starts them.
        words: Overrides of the recipe.
        stage: Of the recipe.
    """

    architecture: str
    world: int = 1
    config: str = "single"
    words: tuple[str, ...] = ()
    stage: str = "dpo"

    @property
    def launcher(self) -> list[str]:
        """Words after `python` that start the processes; the name of a script follows."""
        words = ["-m", "accelerate.commands.launch"]
        words += ["--config_file", str(ROOT / "accelerate_configs" / f"{self.config}.yaml")]
        if self.config != "single":
            words += ["--num_processes", str(self.world), "--main_process_port", "0"]
        if "zero" in self.config:
            file = f"{self.config.removeprefix('cpu_')}.json"
            words += ["--deepspeed_config_file", str(ROOT / "ds_configs" / file)]
        return words


MODES = {
    "single": Mode("llama"),
    "ddp": Mode("gemma2", 2, "cpu_ddp", ("train.logging_steps=2",)),
    "zero2": Mode("llama", 2, "cpu_zero2", ("train.logging_steps=2",)),
    "zero3": Mode("gemma2", 2, "cpu_zero3"),
}


class SmallRun:
    """A recipe of some twelve steps for a tiny model, and the run that is made of it.

    Args:
        folder: Where recipe, data and run go.
        model: Folder of a tiny model.
        stage: Of the recipe; an SFT stage learns the chosen answers.
        sections: Sections of the recipe that replace or add keys.
    """

    def __init__(self, folder: Path, model: Path, stage: str = "dpo", **sections: dict[str, Any]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.stage = stage
        self.path = folder / "runs" / ("small-sft" if stage == "sft" else "small")
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
                "hang_timeout": "10m",
            },
            "evaluation": {"samples": 1, "max_new_tokens": 2},
            "run": {"name": "small"},
        }
        if stage == "sft":
            values["sft"] = {"path": "data.jsonl", "epochs": 3, "learning_rate": 1e-2, "max_length": 128}
        for section, keys in sections.items():
            values[section] = {**values.get(section, {}), **keys}
        (folder / "recipe.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")

    def start(
        self, mode: Mode, *overrides: str, fault: dict[str, Any] | None = None, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        """Runs the recipe until it ends or `fault` strikes."""
        process = self.spawn(mode, *overrides, fault=fault, **environment)
        try:
            out, err = process.communicate(timeout=PATIENCE)
        except subprocess.TimeoutExpired:
            kill_all(process.pid)
            raise
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    def spawn(
        self, mode: Mode, *overrides: str, fault: dict[str, Any] | None = None, **environment: str
    ) -> subprocess.Popen[str]:
        """Starts the recipe."""
        env = {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "COLUMNS": "120",
            "TERM": "dumb",
            "OMP_NUM_THREADS": "1",
            "LORA_DPO_CACHE": str(self.folder / "cache"),  # where other runs have computed nothing
            "CUDA_VISIBLE_DEVICES": "",
            "FAULT": json.dumps(fault or {}),
            "STAGE": self.stage,
            **environment,
        }
        return subprocess.Popen(
            [sys.executable, *mode.launcher, str(FAULTY), "recipe.yaml", *mode.words, *overrides],
            cwd=self.folder,
            env=env,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    def outcome(self) -> dict[str, Any]:
        """Returns what must not depend on how often the run was interrupted."""
        lines = (self.path / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        metrics = [{key: v for key, v in json.loads(line).items() if key not in WALL_TIMES} for line in lines]
        report = json.loads((self.path / "report.json").read_text(encoding="utf-8"))
        (weights,) = [*self.path.glob("adapter/*.safetensors"), *self.path.glob("model/*.safetensors")]
        return {
            "weights": hashlib.sha256(weights.read_bytes()).hexdigest(),
            "metrics": metrics,
            "report": {key: report[key] for key in ("multiple_choice", "preference", "sft", "samples")},
        }

    def checkpoints(self) -> list[int]:
        """Returns the steps that have a checkpoint."""
        manifests = (self.path / "checkpoints").glob("step-*/manifest.json")
        return sorted(int(file.parent.name[5:]) for file in manifests)
