"""On the login node of a Slurm cluster: submit, status, logs, cancel, sweep."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from lora_dpo.cli.app import examples, verbs
from lora_dpo.cli.options import Overrides, RecipePath
from lora_dpo.console import out
from lora_dpo.errors import UserError

if TYPE_CHECKING:
    from lora_dpo.submit import Request

verb = verbs("Cluster")

RunOrJob = Annotated[
    str | None, typer.Argument(metavar="RUN|JOB", help="Run folder, name of a run in runs/, or job number.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print it as JSON.")]


@verb(
    epilog=examples(
        "lora-dpo submit recipes/gemma2_9b_truthfulqa.yaml --nodes 2 --time 8h --account my-project",
        "lora-dpo submit quickstart --gpus-per-node 0 --through merge --dry-run",
        "lora-dpo submit recipes/gemma2_9b_truthfulqa.yaml --array dpo.beta=0.05,0.1,0.3",
        "lora-dpo submit recipes/gemma2_9b_truthfulqa.yaml --profile offline_chain --chain 4",
    )
)
def submit(
    recipe: RecipePath,
    overrides: Overrides = None,
    nodes: Annotated[int | None, typer.Option(min=1, help="Nodes; as slurm.nodes of the recipe.")] = None,
    gpus_per_node: Annotated[int | None, typer.Option(min=0, help="GPUs a node; 0 trains on CPUs.")] = None,
    time: Annotated[str | None, typer.Option(metavar="HH:MM:SS", help="Wall time of a training; 90m, 4h, 2d.")] = None,
    partition: Annotated[str | None, typer.Option(metavar="NAME", help="Partition.")] = None,
    account: Annotated[str | None, typer.Option(metavar="NAME", help="Account to charge.")] = None,
    qos: Annotated[str | None, typer.Option(metavar="NAME", help="Quality of service.")] = None,
    profile: Annotated[
        str | None, typer.Option(metavar="NAME_OR_FILE", help="Cluster profile; your own if not given, else generic.")
    ] = None,
    through: Annotated[
        Literal["sft", "dpo", "eval", "merge", "push"] | None,
        typer.Option(help="The last step; all that the recipe has if not given. eval: as dpo, whose report it is."),
    ] = None,
    chain: Annotated[
        int | None, typer.Option(min=1, help="Jobs of each training in a row, where requeueing is forbidden.")
    ] = None,
    array: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=V1,V2,...", help="A run for each value, and a table; several multiply."),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check, ask Slurm, and print scripts, commands and environment.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Submit a recipe's steps as Slurm jobs that survive preemption, time limits and failing nodes.

    Everything is checked first, and Slurm is asked (`sbatch --test-only`) before anything is written. Recipe and code
    are frozen in the run's folder.
    """
    from lora_dpo.submit import Request

    asked = {
        "nodes": nodes,
        "gpus_per_node": gpus_per_node,
        "time": time,
        "partition": partition,
        "account": account,
        "qos": qos,
        "profile": profile,
    }
    flags = [f"slurm.{key}={json.dumps(value)}" for key, value in asked.items() if value is not None]
    request = Request(recipe, (*(overrides or ()), *flags), through, chain, tuple(array or ()), dry_run)
    _submit(request, as_json=as_json)


@verb(
    epilog=examples(
        "lora-dpo status",
        "lora-dpo status runs/quickstart --watch",
        "lora-dpo status 4711 --json",
    )
)
def status(
    which: RunOrJob = None,
    watch: Annotated[bool, typer.Option("--watch", help="Look again and again, until the jobs have ended.")] = False,
    as_json: AsJson = False,
) -> None:
    """Show how a run's jobs are doing: queue, nodes, steps, loss, time left, restarts, and why one ended.

    Without RUN, all runs below runs/ that have jobs, the newest first.
    """
    from lora_dpo.cluster.finding import find_run, runs_with_jobs
    from lora_dpo.cluster.slurm_client import check_is_here
    from lora_dpo.cluster.status import status_of
    from lora_dpo.cluster.status_view import overview, panel
    from lora_dpo.cluster.status_view import watch as watch_it
    from lora_dpo.cluster.sweep import is_sweep, runs_of

    if which is None:
        found = [status_of(run) for run in runs_with_jobs(Path("runs"))]
        if not found:
            raise UserError("No run below runs/ has cluster jobs.", fix="Submit one: lora-dpo submit RECIPE")
        if watch:
            raise UserError("--watch needs a run.", fix=f"For example: lora-dpo status {found[0].run.path} --watch")
        out.print_json(json.dumps([each.as_json() for each in found])) if as_json else out.print(overview(found))
        return
    if is_sweep(Path(which).expanduser()):
        found = [status_of(run) for run in runs_of(Path(which).expanduser())]
        if watch:
            raise UserError("--watch needs one run.", fix=f"For example: lora-dpo status {found[0].run.path} --watch")
        out.print_json(json.dumps([each.as_json() for each in found])) if as_json else out.print(overview(found))
        return
    run, _ = find_run(which)
    if watch:
        check_is_here()
    seen = watch_it(lambda: status_of(run)) if watch else status_of(run)
    if as_json:
        out.print_json(json.dumps(seen.as_json()))
    elif not watch:
        out.print(panel(seen))


@verb(
    epilog=examples(
        "lora-dpo logs runs/quickstart --follow",
        "lora-dpo logs 4711",
        "lora-dpo logs runs/quickstart --stage merge",
    )
)
def logs(
    which: Annotated[str, typer.Argument(metavar="RUN|JOB", help="Run folder, name of a run in runs/, or job number.")],
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on with what comes, over restarts, until the jobs have ended.")
    ] = False,
    stage: Annotated[str | None, typer.Option(metavar="STEP", help="Only sft, dpo, merge or push.")] = None,
) -> None:
    """Print the log of a run's newest job, and those of its newest start's other nodes."""
    from lora_dpo.cluster.finding import find_run
    from lora_dpo.cluster.logs import follow as follow_them
    from lora_dpo.cluster.logs import logs_of, newest_start, show
    from lora_dpo.cluster.status import status_of

    run, job = find_run(which)
    if not follow:
        show(newest_start(run, logs_of(run, job=job, stage=stage)))
        return
    follow_them(
        lambda: newest_start(run, logs_of(run, job=job, stage=stage)),
        lambda: (
            not any(
                each.is_open for each in status_of(run).jobs if job in (None, each.job) and stage in (None, each.step)
            )
        ),
    )


@verb(epilog=examples("lora-dpo cancel runs/quickstart", "lora-dpo cancel 4711 --now"))
def cancel(
    which: Annotated[str, typer.Argument(metavar="RUN|JOB", help="Run folder, name of a run in runs/, or job number.")],
    now: Annotated[bool, typer.Option("--now", help="End at once; what was not saved yet is lost.")] = False,
) -> None:
    """End a run's jobs: a training saves a checkpoint first, and what waits for it leaves the queue.

    Submitted again, the run goes on from that checkpoint. Of a JOB, those that wait for it are ended too.
    """
    from lora_dpo.cluster.cancel import cancel as cancel_jobs
    from lora_dpo.cluster.finding import find_run
    from lora_dpo.cluster.status import status_of
    from lora_dpo.cluster.status_view import headline

    run, job = find_run(which)
    ended = cancel_jobs(status_of(run), job, now=now)
    out.print(f"Ended: {', '.join(ended)}. {headline(status_of(run))}", soft_wrap=True, markup=False)


@verb(epilog=examples("lora-dpo sweep runs/quickstart-sweep-beta", "lora-dpo sweep runs/quickstart-sweep-beta --json"))
def sweep(
    folder: Annotated[str, typer.Argument(metavar="SWEEP", help="Folder of a sweep, as submit --array has named it.")],
    as_json: AsJson = False,
) -> None:
    """Compare the runs of a sweep, as far as they are: writes sweep.json and sweep.md in its folder."""
    from rich.table import Table

    from lora_dpo.cluster.sweep import compare, table

    found = compare(Path(folder).expanduser())
    if as_json:
        out.print_json(json.dumps(found))
        return
    headings, rows = table(found)
    shown = Table(title="After training (change; its 95 % interval)")
    for heading in headings:
        shown.add_column(heading, overflow="fold")
    for row in rows:
        shown.add_row(*row)
    out.print(shown)
    out.print(found["caveat"])


def _submit(request: Request, *, as_json: bool) -> None:
    from lora_dpo.cluster.account import show_plan, show_planned_sweep, show_submitted, show_submitted_sweep
    from lora_dpo.submit import SweepSubmission, submit

    done = submit(request)
    if as_json:
        out.print_json(json.dumps(done.as_json()))
    elif isinstance(done, SweepSubmission):
        plans = [run.plan for run in done.runs]
        if done.number is None:
            show_planned_sweep(done.folder, plans, [run.says for run in done.runs])
        else:
            show_submitted_sweep(done.folder, plans, [run.numbers for run in done.runs], done.number)
    elif request.dry_run:
        show_plan(done.plan, done.says, done.remarks)
    else:
        show_submitted(done.plan, done.numbers, done.says, done.remarks)
