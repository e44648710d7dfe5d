"""The whole of `lora-dpo submit`: checks, asks Slurm, fetches, freezes, submits, and says what will happen."""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, cast

from lora_dpo.cluster.freezing import code_in_use, frozen_in
from lora_dpo.cluster.planning import Frozen, Plan, PlannedJob, caches, plan_jobs, plan_table
from lora_dpo.cluster.preflight import (
    check_data,
    check_no_job,
    check_run,
    check_training,
    shared_folder_doubt,
)
from lora_dpo.cluster.profile import find_profile
from lora_dpo.cluster.staging import check_models, hub_ids, stage_models
from lora_dpo.cluster.steps import Step, is_complete, steps_of
from lora_dpo.cluster.submission import Submitter, as_json, ask_slurm, job_environment
from lora_dpo.cluster.sweep import parse_axes, sweep_folder, variants, write_definition
from lora_dpo.console import err, note
from lora_dpo.errors import UserError
from lora_dpo.recipe.loading import load_recipe
from lora_dpo.recipe.run_folder import RunFolder
from lora_dpo.recipe.schema import Recipe, Stage
from lora_dpo.recipe.stages import stage_recipe
from lora_dpo.run import check_may_push

Through = Literal["sft", "dpo", "eval", "merge", "push"]


@dataclass(frozen=True, slots=True)
class Request:
    """What was asked for.

    Attributes:
        recipe: A file, or the name of a shipped recipe.
        overrides: Values that replace the file's, those of flags included.
        through: The last step; None takes all that the recipe has.
        chain: Jobs of each training in a row, none of which is requeued; None is what the profile says.
        array: `section.key=v1,v2,...`, each a run of its own.
        dry_run: Only check and show.
    """

    recipe: str
    overrides: tuple[str, ...] = ()
    through: Through | None = None
    chain: int | None = None
    array: tuple[str, ...] = ()
    dry_run: bool = False


@dataclass(slots=True)
class Submission:
    """A run whose jobs can be submitted, since all checks have passed, or have been.

    Attributes:
        plan: Its jobs.
        request: What was asked for.
        complete: Steps that are complete already.
        says: What Slurm says of its first job.
        remarks: What the user should know.
        numbers: The numbers of the jobs once they are submitted.
    """

    plan: Plan
    request: Request
    complete: tuple[Step, ...]
    says: str
    remarks: tuple[str, ...]
    numbers: list[str] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        """Returns what `--json` prints."""
        return {**as_json(self.plan, self.numbers), "complete": list(self.complete), "slurm_says": self.says}


@dataclass(slots=True)
class SweepSubmission:
    """The runs of a sweep, and the job that compares them.

    Attributes:
        folder: The sweep's folder, absolute.
        runs: The runs.
        table: The job that compares them.
        number: Its number once it is submitted.
    """

    folder: Path
    runs: list[Submission]
    table: PlannedJob
    number: str | None = None

    def as_json(self) -> dict[str, Any]:
        """Returns what `--json` prints."""
        return {"sweep": str(self.folder), "table_job": self.number, "runs": [run.as_json() for run in self.runs]}


def submit(request: Request) -> Submission | SweepSubmission:
    """Submits the jobs of a recipe's steps, or checks whether they could be.

    Args:
        request: What was asked for.

    Raises:
        UserError: The recipe cannot be carried out as it stands, or Slurm refuses. No job stays then, and nothing was
            written unless Slurm has changed its mind since it was asked.
    """
    environment, secrets = job_environment(os.environ)  # before a token of .env is read into it
    checks = _Checks(environment, secrets)
    submitter = Submitter(environment)
    if not request.array:
        submission = checks.check(request)
        if not request.dry_run:
            checks.fetch(submission)
            with submitter.all_or_none():
                submission.numbers = submitter.plan(submission.plan)
        return submission
    sweep, write = _checked_sweep(request, checks)
    if not request.dry_run:
        for run in sweep.runs:
            checks.fetch(run)
        write()
        with submitter.all_or_none():
            for run in sweep.runs:
                run.numbers = submitter.plan(run.plan)
            sweep.number = submitter.job(sweep.table, submitter.numbers, RunFolder(sweep.folder))
    return sweep


def _checked_sweep(request: Request, checks: _Checks) -> tuple[SweepSubmission, Callable[[], None]]:
    """Checks all runs of a sweep; returns them, and what writes down what is compared."""
    axes = parse_axes(request.array)
    first = [f"{key}={values[0]}" for key, values in axes.items()]
    recipe = load_recipe(request.recipe, (*request.overrides, *first))  # a misspelt key is found here
    found = variants(recipe, axes)
    _check_repositories(recipe, request.through, axes, len(found))
    runs = []
    for variant in found:
        try:
            runs.append(checks.check(replace(request, overrides=(*request.overrides, *variant.overrides), array=())))
        except CompleteError:  # a sweep that is submitted again goes on with what is left
            note(f"{variant.name} is complete.")
    if not runs:
        raise CompleteError(
            "All runs of the sweep are complete.", fix=f"Compare them: lora-dpo sweep {sweep_folder(recipe, axes)}"
        )
    folder = Path(os.path.abspath(sweep_folder(recipe, axes)))
    check_no_job(RunFolder(folder))
    ends = list(itertools.accumulate(len(run.plan.jobs) for run in runs))
    table = plan_table(runs[0].plan, folder, [end - 1 for end in ends])
    return SweepSubmission(folder, runs, table), lambda: write_definition(folder, recipe, axes, found)


def _check_repositories(recipe: Recipe, through: Through | None, axes: Mapping[str, list[str]], runs: int) -> None:
    """Refuses a sweep of which several runs would be published in one repository.

    Raises:
        UserError: They would.
    """
    if "push" in _steps(recipe, through) and len(axes.get("hub.repo", ("",))) < runs:
        raise UserError(
            f"All {runs} runs of the sweep would be published, several of them in one repository ({recipe.hub.repo}).",
            why="Each would replace the one before it, and the last to end is not the best.",
            fix="Leave the push out by --through merge, and publish the one that you choose: lora-dpo push RUN "
            f"{recipe.hub.repo}",
        )


class CompleteError(UserError):
    """There is nothing left to do."""


class _Checks:
    """All that can be known of runs before they wait; what several runs share is looked at once.

    Args:
        environment: What their jobs would be submitted from.
        secrets: Names of the secrets in it.
    """

    def __init__(self, environment: Mapping[str, str], secrets: list[str]) -> None:
        self._environment, self._secrets = environment, secrets
        self._seen: set[str] = set()

    def check(self, request: Request) -> Submission:
        """Checks a run; nothing is written.

        Raises:
            UserError: Something does not fit, or Slurm would refuse a job.
        """
        recipe = load_recipe(request.recipe, request.overrides)
        profile, place = find_profile(recipe.slurm.profile)
        if self._is_new("profile", place):
            err.print(f"Profile: {place}", soft_wrap=True)
        # Where this process fetches, the jobs look. First of all: the Hub's client reads it when it is imported.
        os.environ.update(caches(profile))
        if (request.chain or 1) > 1:
            profile = profile.model_copy(update={"requeue": "chain"})
        steps, complete = _open_steps(recipe, request.through)
        run = RunFolder(Path(os.path.abspath(RunFolder.of(recipe).path)))
        plan = plan_jobs(recipe, profile, steps, frozen_in(run, profile), chain=request.chain or profile.chain or 1)
        remarks = _check_trainings(plan, steps)
        check_no_job(run)
        if "push" in steps:
            check_may_push(recipe, offline=profile.offline)
        said = [ask_slurm(job, self._environment) for job in _as_in_use(plan)]
        if self._is_new("models", *map(str, hub_ids(recipe))):
            check_models(recipe)
        self._check_data(request, plan, offline=False)
        if self._secrets:
            named = ", ".join(self._secrets)
            alone = " A Hub token in .env (chmod 600) is read by the jobs alone." if "_TOKEN" in named else ""
            remarks.append(
                f"{named}: the jobs get it with this shell's environment, of which Slurm keeps a copy.{alone}"
            )
        return Submission(plan, request, complete, said[0], tuple(remarks))

    def fetch(self, submission: Submission) -> None:
        """Fetches what the nodes of a run could not, and reads the data once more without a network.

        Raises:
            UserError: Something cannot be fetched, or is not there without a network.
        """
        plan = submission.plan
        if not plan.profile.offline:
            return
        if self._is_new("fetched", *map(str, hub_ids(plan.recipe))):
            for name, folder in stage_models(plan.recipe):
                err.print(f"Fetched: {name}, in {folder}", soft_wrap=True)
        self._check_data(submission.request, plan, offline=True)

    def _check_data(self, request: Request, plan: Plan, *, offline: bool) -> None:
        recipe, variables = plan.recipe, {"HF_HUB_OFFLINE": "1"} if offline else {}
        read = recipe.model_dump_json(include={"model", "data", "sft"})
        for step in dict.fromkeys(job.step for job in plan.jobs if job.step in ("sft", "dpo")):
            if not self._is_new(step, str(offline), read, str(recipe.dpo.max_length)):
                continue
            with err.status(f"Checking the data of {step}"):
                words = [request.recipe, *request.overrides]
                found = check_data(words, of_sft=step == "sft", environment=variables)
            counts = [f"{name} {split.get('pairs', split.get('examples'))}" for name, split in found["splits"].items()]
            note(f"Data of {step}: {', '.join(counts)}{'; readable without a network' if offline else ''}.")

    def _is_new(self, *words: str) -> bool:
        """Returns whether this is asked for the first time."""
        key = json.dumps(words)
        new = key not in self._seen
        self._seen.add(key)
        return new


def _steps(recipe: Recipe, through: Through | None) -> list[Step]:
    """Returns the steps that were asked for.

    The report is the last part of the DPO job, which has the whole model in memory: `eval` ends there as `dpo` does.
    """
    return steps_of(recipe, cast("Step | None", "dpo" if through == "eval" else through))


def _open_steps(recipe: Recipe, through: Through | None) -> tuple[list[Step], tuple[Step, ...]]:
    """Returns the steps that are to be done, and those before them that are complete."""
    steps = _steps(recipe, through)
    complete = []
    for step in steps:
        if not is_complete(recipe, step):
            break
        complete.append(step)
    if len(complete) == len(steps):
        raise CompleteError(
            f"All of {recipe.run.name} is complete: {', '.join(complete)}.",
            fix=f"See it by `lora-dpo run RECIPE{'' if through is None else f' --through {through}'}`, or give another "
            "name by run.name=NAME.",
        )
    return steps[len(complete) :], tuple(complete)


def _as_in_use(plan: Plan) -> list[PlannedJob]:
    """Returns one job of each kind, with the script that is there before anything is frozen."""
    in_use = Frozen(code_in_use(), plan.frozen.recipe, plan.frozen.setup)
    kinds = {(job.flags, job.script.name): job for job in plan.jobs}
    return [replace(job, script=in_use.script(job.script.name)) for job in kinds.values()]


def _check_trainings(plan: Plan, steps: list[Step]) -> list[str]:
    """Checks strategy, batch and folder of each training; returns what the user should know."""
    remarks = []
    for step in steps:
        if step in ("sft", "dpo"):
            stage = cast(Stage, step)
            strategy = check_training(stage_recipe(plan.recipe, stage), plan.size, plan.profile)
            check_run(plan.recipe, stage)
            remarks.append(f"{step}: {strategy} on {plan.size}.")
    if (doubt := shared_folder_doubt(plan.run)) is not None:
        remarks.append(doubt)
    return remarks
