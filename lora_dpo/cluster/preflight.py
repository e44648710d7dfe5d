"""What can be known of a job before it waits for hours: whether recipe, data and strategy go with what it asks for."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from lora_dpo import resources
from lora_dpo.cluster.launch import DEEPSPEED, fitting_strategy
from lora_dpo.cluster.planning import Size
from lora_dpo.cluster.profile import Profile
from lora_dpo.cluster.record import Record, open_jobs
from lora_dpo.cluster.slurm_client import show_job
from lora_dpo.errors import UserError
from lora_dpo.recipe.batch import check_one_each, plan_batches, token_budget
from lora_dpo.recipe.run_folder import RunFolder
from lora_dpo.recipe.schema import Recipe, Stage
from lora_dpo.recipe.stages import stage_recipe

_NODE_LOCAL = ("/tmp", "/var/tmp", "/dev/shm", "/run")


def check_training(recipe: Recipe, size: Size, profile: Profile) -> str:
    """Checks that a stage's strategy and batch go with what its job asks for.

    Args:
        recipe: The recipe of the stage.
        size: What its training gets.
        profile: The cluster's profile.

    Returns:
        The strategy that it will have.

    Raises:
        UserError: They do not.
    """
    if recipe.evaluation.folds is not None:
        folds = recipe.evaluation.folds
        raise UserError(
            f"evaluation.folds {folds} is several trainings one after the other, which no job does.",
            fix=f"Submit a job a fold: evaluation.folds=null data.split.folds={folds} "
            f"--array data.split.fold={','.join(map(str, range(1, folds + 1)))}",
        )
    strategy = recipe.train.strategy
    if strategy == "single" and size.world > 1:
        raise UserError(
            f"train.strategy single is one process, but {size} are {size.world}.",
            fix="Set train.strategy=auto, or ask for one node with at most one GPU.",
        )
    if strategy == "auto":
        strategy = fitting_strategy(recipe, size.world)
    on_cpu = strategy == "single" or (resources.folder("accelerate_configs") / f"cpu_{strategy}.yaml").is_file()
    if not size.gpus and not on_cpu:
        raise UserError(
            f"train.strategy {strategy} needs GPUs, and the job asks for none.",
            fix="Ask for GPUs by --gpus-per-node N, or take train.strategy=ddp.",
        )
    # In a container the packages are others than here.
    if strategy in DEEPSPEED and profile.run_with is None and importlib.util.find_spec("deepspeed") is None:
        raise UserError(f"train.strategy {strategy} needs the package deepspeed.", fix="Run: pip install deepspeed")
    if token_budget(recipe) is None:
        plan_batches(recipe.train.global_batch_size, recipe.train.micro_batch_size, size.world)
    else:
        check_one_each(recipe, size.world)
    return strategy


def check_run(recipe: Recipe, stage: Stage) -> None:
    """Checks that a stage's run may be written or gone on with.

    Raises:
        UserError: Something is there that would be lost, or a process writes it now.
    """
    own = stage_recipe(recipe, stage)
    run = RunFolder.of(own)
    try:
        run.check_free(own, overwrite=False)
    except UserError as error:
        # A job never replaces a run: requeued, it would replace what it has done.
        fix = "Give another name by run.name=NAME, or move the folder away."
        raise UserError(error.what, why=error.why, fix=fix) from None
    if run.is_run:
        run.lock().release()


def check_no_job(run: RunFolder) -> None:
    """Checks that no job of a run waits or runs.

    Raises:
        UserError: One does.
    """
    for number in open_jobs(Record(run).events()):
        job = show_job(number)
        if job is not None and not job.has_ended:
            raise UserError(
                f"{run.path} has a job already: {number} is {job.state}.",
                why="Two jobs would write the same run.",
                fix=f"Watch it by `lora-dpo status {run.path} --watch`, end it by `lora-dpo cancel {run.path}`, "
                "or give this one another name by run.name=NAME.",
            )


def check_data(words: Sequence[str], *, of_sft: bool, environment: Mapping[str, str]) -> dict[str, Any]:
    """Reads, divides and tokenises a stage's data as its job will.

    Args:
        words: The recipe, and what replaces its values.
        of_sft: Whether it is the data of the SFT stage.
        environment: Variables of the job, such as that it has no network.

    Returns:
        Counts, as `lora-dpo data --json` prints them.

    Raises:
        UserError: The data, or the tokenizer, cannot be read or used.
    """
    command = [sys.executable, "-m", "lora_dpo", "data", *words, "--json", *(["--sft"] if of_sft else [])]
    result = subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True, check=False)
    if result.returncode:
        lines = [line for line in result.stderr.splitlines() if line.strip()]
        first = next(
            (number for number, line in enumerate(lines) if line.startswith("Error: ")), max(0, len(lines) - 5)
        )
        raise UserError("\n".join(lines[first:]).removeprefix("Error: ") or "The data cannot be read.")
    return json.loads(result.stdout)


def shared_folder_doubt(run: RunFolder) -> str | None:
    """Returns why the nodes may not see a run's folder; None where nothing speaks for that."""
    place = os.path.abspath(run.path)
    local = next((folder for folder in _NODE_LOCAL if place.startswith(f"{folder}/")), None)
    if local is None:
        return None
    return f"{run.path} is below {local}, which on most clusters each node has for itself. Jobs then end at once."
