"""A start of a Slurm job: which it is, what it does, and where that is written down."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast, get_args

from lora_dpo.cluster.record import Event, Record
from lora_dpo.errors import UserError, did_you_mean
from lora_dpo.files import write_text
from lora_dpo.recipe.loading import load_recipe, to_yaml
from lora_dpo.recipe.run_folder import RunFolder
from lora_dpo.recipe.schema import Recipe, Stage
from lora_dpo.recipe.stages import stage_recipe

STAGE = "LORA_DPO_STAGE"
CHAIN = "LORA_DPO_CHAIN"
RUN = "LORA_DPO_RUN"
NODES = "LORA_DPO_NODES"
"""The nodes' names, which the batch script asks Slurm for: in a container there may be no Slurm to ask."""
_KEPT_HEAD = "# What this job was started with, defaults included; it reads this file when it is started again.\n"


@dataclass(frozen=True, slots=True)
class Job:
    """A start of a job.

    Attributes:
        id: The job's own number; each task of an array has one.
        restart: How often it has been started again.
        array_task: Its number in an array, or None.
        stage: What it does: sft, dpo, or a verb.
        nodes: Their names, first the one that the batch script runs on.
        chain: What the jobs of one chain have in common, or None.
        home: The run of the recipe's last stage, which has the record of all stages; None where nobody knows it.
    """

    id: str
    restart: int
    array_task: int | None
    stage: str
    nodes: tuple[str, ...]
    chain: str | None
    home: RunFolder | None

    @classmethod
    def of(cls, stage: str, home: RunFolder | None, environment: Mapping[str, str] = os.environ) -> Job:
        """Reads what Slurm and the batch script have set."""
        task = environment.get("SLURM_ARRAY_TASK_ID")
        return cls(
            id=environment.get("SLURM_JOB_ID", "0"),
            restart=int(environment.get("SLURM_RESTART_COUNT") or 0),
            array_task=int(task) if task else None,
            stage=stage,
            nodes=tuple(environment.get(NODES, "").split()) or (socket.gethostname().partition(".")[0],),
            chain=environment.get(CHAIN),
            home=home,
        )

    @property
    def label(self) -> str:
        """What the files of this start are called."""
        return f"{self.stage}-{self.id}.{self.restart}"

    def log(self, node: str | None = None) -> Path | None:
        """Returns the file that gets what the processes print; each of several nodes has one of its own."""
        if self.home is None:
            return None
        return self.home.slurm / "logs" / f"{self.label}{f'.{node}' if node is not None else ''}.out"

    @property
    def logs(self) -> str:
        """All its logs, as a shell would find them."""
        if self.home is None:
            return "the job's output"
        return str(self.log("*" if len(self.nodes) > 1 else None))

    @property
    def reports(self) -> Path:
        """Folder in which each node writes down how it ended."""
        return self.home.slurm / "nodes" / self.label

    def write_down(self, event: Event, **values: Any) -> None:
        """Adds a line about this start to the record, if there is one."""
        if self.home is not None:
            known = {"job": self.id, "array_task": self.array_task, "restart": self.restart, "stage": self.stage}
            Record(self.home).append(event, **known, nodes=list(self.nodes), chain=self.chain, **values)

    def events(self) -> list[dict[str, Any]]:
        """Returns the events of this job, or of its chain, at this stage."""
        if self.home is None:
            return []
        events = [event for event in Record(self.home).events() if event.get("stage") == self.stage]
        if self.chain is not None:
            return [event for event in events if event.get("chain") == self.chain]
        return [event for event in events if event.get("job") == self.id]


def kept_recipe(job: str) -> str:
    """Returns the name of the file with a job's recipe, in the folder `slurm` of its run."""
    return f"recipe-{job}.yaml"


@dataclass(frozen=True, slots=True)
class TrainingJob:
    """A start of a job that trains.

    Attributes:
        job: The start.
        whole: The recipe of all stages.
        recipe: That of its stage.
        run: The run of its stage.
    """

    job: Job
    whole: Recipe
    recipe: Recipe
    run: RunFolder

    @classmethod
    def of(cls, words: Sequence[str], environment: Mapping[str, str] = os.environ) -> TrainingJob:
        """Reads the recipe, and what Slurm has set.

        Args:
            words: The recipe and its overrides.
            environment: The variables.

        Raises:
            UserError: The recipe or the stage is wrong, or there are words that are no overrides.
        """
        stage = environment.get(STAGE) or "dpo"
        if stage not in get_args(Stage):
            raise UserError(f"{STAGE}={stage} is no stage that trains.", fix=did_you_mean(stage, get_args(Stage)))
        if not words:
            raise UserError("There is no recipe.", fix="Give one: sbatch train.sbatch RECIPE [section.key=value ...]")
        if flags := [word for word in words if word.startswith("-")]:
            raise UserError(
                f"A job takes a recipe and section.key=value words, but not {flags[0]}.",
                why="It may be started again and again, and goes on each time."
                + " --overwrite would begin anew." * ("--overwrite" in flags),
                fix="sbatch's own options stand before the script's name.",
            )
        whole = load_recipe(words[0], words[1:])
        recipe = stage_recipe(whole, cast(Stage, stage))
        return cls(Job.of(stage, RunFolder.of(whole), environment), whole, recipe, RunFolder.of(recipe))

    def freeze(self) -> Path:
        """Keeps the recipe as the job has read it, for its other processes and for when it is started again."""
        file = RunFolder.of(self.whole).slurm / kept_recipe(self.job.id)
        write_text(file, _KEPT_HEAD + to_yaml(self.whole))
        return file

    def newest_step(self) -> int:
        """Returns the optimizer step of the newest whole checkpoint, 0 for none."""
        steps = [0]
        for manifest in self.run.checkpoints.glob("step-*/manifest.json"):
            number = manifest.parent.name.removeprefix("step-")
            steps += [int(number)] * number.isdecimal()
        return max(steps)
