"""What `lora-dpo submit` tells: the jobs, what will happen to them, how to watch them; of a dry run, every line."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from rich.table import Table

from lora_dpo import resources
from lora_dpo.cluster.freezing import code_version
from lora_dpo.cluster.planning import Plan, PlannedJob
from lora_dpo.cluster.submission import environment_lines, placeholders
from lora_dpo.console import out

_DOES = {
    "sft": "trains on answers",
    "dpo": "trains on preferences, then evaluates: report.md",
    "merge": "makes one model of base and adapter, and checks it",
    "push": "publishes it",
}
_AT_ITS_END = {
    "requeue": "Preempted, out of time, or on a node that fails: it saves what it can, waits again as the same job, "
    "and goes on where it was. Three failures in a row end that.",
    "chain": "Preempted or out of time: it saves what it can, and the next job of the chain goes on. Jobs left over "
    "when the training is through end at once.",
    "never": "Preempted or out of time: it saves what it can and ends. The same command again goes on from there.",
}


def show_submitted(plan: Plan, numbers: Sequence[str], says: str, remarks: Sequence[str]) -> None:
    """Prints what was submitted."""
    count = len(numbers)
    out.print(f"Submitted {plan.recipe.run.name}: {count} job{'s' if count > 1 else ''}.", soft_wrap=True)
    out.print(_jobs_table(plan, numbers))
    _show_words(says, remarks)
    out.print(_at_its_end(plan), soft_wrap=True)
    if plan.profile.offline and any(job.step == "push" for job in plan.jobs):
        out.print("Without a network the last job only prepares the push; then here: lora-dpo push --pending")
    out.print(
        f"Frozen in {short(plan.run.slurm)}: the recipe and the code ({code_version()}). What changes here no longer "
        "reaches these jobs.",
        soft_wrap=True,
    )
    run = shlex.quote(short(plan.run.path))
    for what, verb in (("Watch", "status {} --watch"), ("Read", "logs {} --follow"), ("End", "cancel {}")):
        out.print(f"{what + ':':6} lora-dpo {verb.format(run)}", soft_wrap=True)


def show_plan(plan: Plan, says: str, remarks: Sequence[str]) -> None:
    """Prints what would be submitted: each command, its environment, and the scripts."""
    numbers = placeholders(plan)
    out.print(f"A dry run of {plan.recipe.run.name}: nothing was written, fetched for the nodes, or submitted.")
    out.print(_jobs_table(plan, numbers))
    _show_words(says, remarks)
    for place, job in enumerate(plan.jobs):
        out.print(f"\n# {numbers[place]}: {job.step}, with this environment besides the shell's own:", soft_wrap=True)
        for line in environment_lines(job.environment):
            out.print(f"export {line}", soft_wrap=True, markup=False)
        out.print(job.line(numbers), soft_wrap=True, markup=False)
    for script in dict.fromkeys(job.script.name for job in plan.jobs):
        out.print(f"\n# {script}:", soft_wrap=True)
        out.print(_script_text(script), soft_wrap=True, markup=False)


def show_submitted_sweep(folder: Path, runs: Sequence[Plan], numbers: Sequence[Sequence[str]], table: str) -> None:
    """Prints what was submitted of a sweep."""
    jobs = sum(map(len, numbers)) + 1
    out.print(f"Submitted {len(runs)} runs, {jobs} jobs.", soft_wrap=True)
    out.print(_runs_table(runs, numbers))
    out.print(f"When all have ended, job {table} compares them: {short(folder / 'sweep.md')}", soft_wrap=True)
    out.print(_at_its_end(runs[0]), soft_wrap=True)
    out.print(f"Watch: lora-dpo status {shlex.quote(short(folder))}", soft_wrap=True)
    out.print(f"Table: lora-dpo sweep {shlex.quote(short(folder))}", soft_wrap=True)


def show_planned_sweep(folder: Path, runs: Sequence[Plan], says: Sequence[str]) -> None:
    """Prints what would be submitted of a sweep: each command, and the environment of the first."""
    out.print(f"A dry run of {len(runs)} runs: nothing was written, fetched for the nodes, or submitted.")
    out.print(_runs_table(runs, [placeholders(plan) for plan in runs]))
    out.print(f"Their table would be {short(folder / 'sweep.md')}.", soft_wrap=True)
    show_plan(runs[0], says[0], ())


def _runs_table(runs: Sequence[Plan], numbers: Sequence[Sequence[str]]) -> Table:
    table = Table(box=None, header_style="dim", pad_edge=False)
    for heading in ("run", "jobs"):
        table.add_column(heading, overflow="fold")
    for plan, own in zip(runs, numbers, strict=True):
        jobs = (f"{number} {job.step}" for number, job in zip(own, plan.jobs, strict=True))
        table.add_row(plan.recipe.run.name, ", ".join(jobs))
    return table


def short(path: Path) -> str:
    """Returns a path as a user in the working directory would type it."""
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


def _at_its_end(plan: Plan) -> str:
    is_chain = any(job.after_end for job in plan.jobs)
    return _AT_ITS_END["never" if plan.profile.requeue == "chain" and not is_chain else plan.profile.requeue]


def _show_words(says: str, remarks: Sequence[str]) -> None:
    out.print(f"Slurm: {says}", soft_wrap=True, markup=False)
    for remark in remarks:
        out.print(remark, soft_wrap=True, markup=False)


def _jobs_table(plan: Plan, numbers: Sequence[str]) -> Table:
    table = Table(box=None, header_style="dim", pad_edge=False)
    for heading in ("job", "step", "does", "waits for", "time"):
        table.add_column(heading, overflow="fold")
    for number, job in zip(numbers, plan.jobs, strict=True):
        table.add_row(number, job.step, _DOES.get(job.step, ""), _waits_for(job, numbers), _flag(job, "--time"))
    return table


def _waits_for(job: PlannedJob, numbers: Sequence[str]) -> str:
    words = [f"{numbers[place]} to succeed" for place in job.after_success]
    words += [f"{numbers[place]} to end" for place in job.after_end]
    return ", ".join(words) or "nodes"


def _flag(job: PlannedJob, name: str) -> str:
    return next((flag.partition("=")[2] for flag in job.flags if flag.startswith(f"{name}=")), "")


def _script_text(name: str) -> str:
    return (resources.folder("slurm") / name).read_text(encoding="utf-8").rstrip()
