"""From a recipe and a profile to the jobs of its steps: the exact `sbatch` lines, and what they are given."""

from __future__ import annotations

import getpass
import os
import shlex
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from string import Template

from lora_dpo.cluster.job import CHAIN, RUN, STAGE
from lora_dpo.cluster.profile import Profile
from lora_dpo.cluster.requeue import MODE, Mode
from lora_dpo.cluster.steps import Step, command_of
from lora_dpo.errors import UserError
from lora_dpo.recipe.run_folder import RunFolder
from lora_dpo.recipe.schema import Recipe
from lora_dpo.recipe.types import format_duration

_TRAINING: tuple[str, ...] = ("sft", "dpo")
_NAME = "--job-name="
_LONGEST_AFTERWARDS = timedelta(hours=2)
"""Wall time of a job that trains nothing: it takes minutes, and a short job starts sooner."""
_WARNING_AFTERWARDS = 60
"""Seconds before its end at which such a job is warned: it keeps what it has done as it goes."""


@dataclass(frozen=True, slots=True)
class Size:
    """What a training gets.

    Attributes:
        nodes: Nodes.
        gpus: GPUs a node.
        processes: Processes a node.
    """

    nodes: int
    gpus: int
    processes: int

    @property
    def world(self) -> int:
        """Processes over all nodes."""
        return self.nodes * self.processes

    def __str__(self) -> str:
        nodes = f"{self.nodes} node{'s' if self.nodes > 1 else ''}"
        if self.gpus:
            return f"{nodes} with {self.gpus} GPU{'s' if self.gpus > 1 else ''} each"
        return f"{nodes} without GPUs, {self.processes} process{'es' if self.processes > 1 else ''} each"


@dataclass(frozen=True, slots=True)
class Frozen:
    """What a run's jobs are started from, whatever becomes of the checkout: paths in `RUN/slurm/`.

    Attributes:
        code: Folder with the package and its neighbours; before it is frozen, the ones that are in use.
        recipe: The resolved recipe.
        setup: Shell file that the jobs source first; None where there is none.
    """

    code: Path
    recipe: Path
    setup: Path | None

    def script(self, name: str) -> Path:
        """Returns one of the sbatch scripts."""
        return self.code / "slurm" / name


@dataclass(frozen=True, slots=True)
class PlannedJob:
    """One job, before it has a number.

    Attributes:
        step: What it does.
        flags: Words of sbatch before the script, without dependencies.
        script: The script.
        words: Words after it.
        environment: Variables that it is given besides those of the shell it is submitted from.
        after_success: Places, in the list of all jobs, of those that must have succeeded.
        after_end: Places of those that must have ended.
    """

    step: str
    flags: tuple[str, ...]
    script: Path
    words: tuple[str, ...]
    environment: Mapping[str, str]
    after_success: tuple[int, ...] = ()
    after_end: tuple[int, ...] = ()

    @property
    def name(self) -> str:
        """The name that Slurm knows it by."""
        return next(flag for flag in self.flags if flag.startswith(_NAME)).removeprefix(_NAME)

    def command(self, numbers: Sequence[str], *further: str) -> list[str]:
        """Returns the words that submit it.

        Args:
            numbers: The numbers of the jobs before it in the list.
            further: Flags besides its own.
        """
        conditions = [f"afterok:{numbers[place]}" for place in self.after_success]
        conditions += [f"afterany:{':'.join(numbers[place] for place in self.after_end)}"] if self.after_end else []
        depends = [f"--dependency={','.join(conditions)}", "--kill-on-invalid-dep=yes"] if conditions else []
        return ["sbatch", *further, *self.flags, *depends, str(self.script), *self.words]

    def line(self, numbers: Sequence[str]) -> str:
        """Returns what a user would type into a shell that has its environment."""
        return shlex.join(self.command(numbers, "--parsable"))


@dataclass(slots=True)
class Plan:
    """All jobs of one run, in the order in which they are submitted.

    Attributes:
        recipe: The recipe.
        run: Its run folder, absolute.
        profile: The cluster's profile.
        size: What the training gets.
        frozen: What the jobs are started from.
        jobs: The jobs.
    """

    recipe: Recipe
    run: RunFolder
    profile: Profile
    size: Size
    frozen: Frozen
    jobs: list[PlannedJob] = field(default_factory=list)


def size_of(recipe: Recipe, profile: Profile) -> Size:
    """Returns what a recipe's training gets on a cluster.

    Raises:
        UserError: It asks for more than a node has.
    """
    asked = recipe.slurm
    gpus = next(count for count in (asked.gpus_per_node, profile.gpus_per_node, 1) if count is not None)
    if profile.gpus_per_node is not None and gpus > profile.gpus_per_node:
        raise UserError(
            f"slurm.gpus_per_node is {gpus}, but by the profile a node has {profile.gpus_per_node}.",
            fix=f"Take --gpus-per-node {profile.gpus_per_node}{' and more --nodes' if profile.gpus_per_node else ''}, "
            "or correct gpus_per_node in the profile.",
        )
    if gpus and asked.processes_per_node not in (None, gpus):
        raise UserError(
            f"slurm.processes_per_node is {asked.processes_per_node}, with {gpus} GPUs a node.",
            why="On GPUs there is one process a GPU.",
            fix="Leave it out; it says how many processes a node without GPUs has.",
        )
    return Size(asked.nodes, gpus, gpus or asked.processes_per_node or 1)


def plan_jobs(recipe: Recipe, profile: Profile, steps: Sequence[Step], frozen: Frozen, *, chain: int = 1) -> Plan:
    """Writes the jobs of a recipe's steps, each after the one before.

    Args:
        recipe: The recipe.
        profile: The cluster's profile.
        steps: What is to be done.
        frozen: What the jobs are started from.
        chain: Jobs of each training, of which each goes on where the one before stopped.

    Returns:
        The jobs; nothing is submitted.

    Raises:
        UserError: The recipe asks for more than a node has.
    """
    run = RunFolder(Path(os.path.abspath(RunFolder.of(recipe).path)))
    plan = Plan(recipe, run, profile, size_of(recipe, profile), frozen)
    last: tuple[int, ...] = ()
    for step in steps:
        training = step in _TRAINING
        jobs = chain if training else 1
        flags, words = _flags(plan, step), _words(plan, step)
        shared = {CHAIN: uuid.uuid4().hex} if jobs > 1 else {}
        script = frozen.script("train.sbatch" if training else "stage.sbatch")
        before: tuple[int, ...] = ()
        for number in range(1, jobs + 1):
            environment = {**_environment(plan, step, has_next=number < jobs), **shared}
            # A chained job must not begin either where the step before its chain has failed.
            plan.jobs.append(PlannedJob(step, flags, script, words, environment, last, before))
            before = (len(plan.jobs) - 1,)
        last = before
    return plan


def plan_table(first: Plan, folder: Path, after: Sequence[int]) -> PlannedJob:
    """Writes the job that compares the runs of a sweep, once all of them have ended.

    Args:
        first: The plan of one of them, from whose code it is started.
        folder: The sweep's folder, absolute.
        after: Places, in the list of all jobs, of the last one of each run.
    """
    own = first.recipe.model_copy(update={"run": first.recipe.run.model_copy(update={"name": folder.name})})
    plan = replace(first, recipe=own, run=RunFolder(folder))
    script, environment = first.frozen.script("stage.sbatch"), _environment(plan, "sweep", has_next=False)
    return PlannedJob(
        "sweep", _flags(plan, "sweep"), script, ("sweep", str(folder)), environment, after_end=tuple(after)
    )


def _words(plan: Plan, step: Step) -> tuple[str, ...]:
    if step in _TRAINING:
        # From the jobs' working directory: what a run says of itself is published, and names no place of this machine.
        recipe = plan.frozen.recipe
        return (str(recipe.relative_to(Path.cwd()) if recipe.is_relative_to(Path.cwd()) else recipe),)
    words = command_of(plan.recipe, step)
    return (*words, "--prepare") if step == "push" and plan.profile.offline else tuple(words)


def _warning(time: timedelta, seconds: int) -> int:
    """Returns how many seconds before its end a job is warned: one that is warned as it begins would do nothing."""
    return max(1, min(seconds, int(time.total_seconds()) // 4))


def _flags(plan: Plan, step: str) -> tuple[str, ...]:
    recipe, profile, size = plan.recipe, plan.profile, plan.size
    training = step in _TRAINING
    gpus = size.gpus if training else min(size.gpus, 1)  # a partition of GPUs may refuse a job without one
    processes = size.processes if training else 1
    time = recipe.slurm.time if training else min(recipe.slurm.time, _LONGEST_AFTERWARDS)
    kind = f"{profile.gpu_type}:" if profile.gpu_type else ""
    flags = [
        f"{_NAME}{recipe.run.name}-{step}",
        f"--chdir={Path.cwd()}",
        # The script writes a log of its own for each start; this one gets what comes before.
        f"--output={str(plan.run.slurm / 'logs').replace('%', '%%')}/{step}-%j.out",
        "--open-mode=append",
        "--export=ALL",
        f"--nodes={size.nodes if training else 1}",
        "--ntasks-per-node=1",
        f"--time={format_duration(time)}",
        f"--signal=B:USR1@{_warning(time, profile.warn_seconds if training else _WARNING_AFTERWARDS)}",
    ]
    # The scripts' default is one GPU, which a --gres alone would not replace.
    by_gres = profile.gpu_flag == "gres"
    flags.append(f"--gpus-per-node={f'{kind}{gpus}' if gpus and not by_gres else 0}")
    if gpus and by_gres:
        flags.append(f"--gres=gpu:{kind}{gpus}")
    flags.append(f"--cpus-per-task={profile.cpus_per_gpu * processes}")
    for name, value in (
        ("mem", profile.mem),
        ("partition", recipe.slurm.partition or profile.partition),
        ("account", recipe.slurm.account or profile.account),
        ("qos", recipe.slurm.qos or profile.qos),
    ):
        flags += [] if value is None else [f"--{name}={value}"]
    flags.append("--requeue" if profile.requeue == "requeue" else "--no-requeue")
    return (*flags, *profile.sbatch)


def _environment(plan: Plan, step: str, *, has_next: bool) -> dict[str, str]:
    profile, frozen = plan.profile, plan.frozen
    # What has no next job in a chain can leave nothing to it.
    mode: Mode = "never" if profile.requeue == "chain" and not has_next else profile.requeue
    values = {
        # The package that is imported must be the frozen one, and not one in the working directory.
        "PYTHONSAFEPATH": "1",
        STAGE: step,
        RUN: str(plan.run.path),
        "LORA_DPO_CODE": str(frozen.code),
        MODE: mode,
    }
    if profile.max_restarts is not None:
        values["LORA_DPO_MAX_RESTARTS"] = str(profile.max_restarts)
    if profile.offline:
        values["LORA_DPO_OFFLINE"] = "1"
    if frozen.setup is not None:
        values["LORA_DPO_SETUP"] = str(frozen.setup)
    if profile.run_with is not None:
        values["LORA_DPO_RUN_WITH"] = profile.run_with
    if step in _TRAINING and not plan.size.gpus:
        values["PROCESSES_PER_NODE"] = str(plan.size.processes)
    return {**values, **caches(profile), **profile.environment}


def caches(profile: Profile) -> dict[str, str]:
    """Returns where downloads and lora-dpo's cache go by a profile; a variable that is set already stays."""
    if profile.scratch is None:
        return {}
    folder = scratch_folder(profile.scratch)
    places = {
        "HF_HUB_CACHE": folder / "huggingface" / "hub",
        "HF_DATASETS_CACHE": folder / "huggingface" / "datasets",
        "LORA_DPO_CACHE": folder / "lora-dpo",
    }
    return {name: os.environ.get(name) or str(place) for name, place in places.items()}


def scratch_folder(scratch: str) -> Path:
    """Returns the folder that a profile's `scratch` names.

    Raises:
        UserError: It names a variable that is not set here, or is not absolute.
    """
    names = {"USER": getpass.getuser(), **os.environ}
    filled = os.path.expanduser(Template(scratch).safe_substitute(names))
    if "$" in filled or not os.path.isabs(filled):
        raise UserError(
            f"The profile's scratch is {scratch}, which here means {filled}.",
            why="A variable in it is not set." if "$" in filled else "It is no absolute path.",
            fix="Give a path that means the same on the login node and on the others, such as /scratch/$USER.",
        )
    return Path(filled)
