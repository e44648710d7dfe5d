"""Strikes a training on two nodes of an emulated Slurm cluster at random moments, and compares it with one left alone.

    python benchmarks/slurm_soak.py --rounds 20 --output benchmarks/results/slurm_soak.json
    python benchmarks/slurm_soak.py --rounds 2 --strike preempt --strike crash_node

A round is one training of a tiny model that is struck once, in its turn: preempted, requeued without grace, a node
crashed, its step cancelled, warned of the time limit, one of its processes killed. Slurm and the job then have to bring
it to its end by themselves. It is identical if adapter, metrics (but for wall times) and report are. Needs what
tests/slurm needs: root on Debian, where it installs Slurm if it is missing.
"""

from __future__ import annotations

import json
import os
import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from tests.slurm.cluster import Cluster
    from tests.slurm.runs import ClusterRun

_ROOT = Path(__file__).resolve().parent.parent
_SECTIONS = {"train": {"strategy": "ddp", "epochs": 12, "save_steps": 5, "evals_per_epoch": 0, "hang_timeout": "10m"}}

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="markdown")


@dataclass(frozen=True, slots=True)
class Round:
    """What came of one strike.

    Attributes:
        strike: Its name.
        after_seconds: When it struck, after the job had begun.
        at_step: The newest checkpoint then, 0 for none.
        struck: Whether it came before the end.
        survived: Whether the job came to its end by itself.
        identical: Whether it then was what an undisturbed one is.
        starts: Times that Slurm started the job.
        causes: How each start ended.
    """

    strike: str
    after_seconds: float
    at_step: int
    struck: bool
    survived: bool
    identical: bool
    starts: int
    causes: list[str]


@app.command(epilog="Example: python benchmarks/slurm_soak.py --rounds 20 --output benchmarks/results/slurm_soak.json")
def main(
    rounds: Annotated[int, typer.Option(min=1, help="Strikes, one after the other; every kind comes in turn.")] = 6,
    strike: Annotated[list[str] | None, typer.Option(help="Only this kind; may be given more than once.")] = None,
    seed: Annotated[int, typer.Option(help="Draws the moments.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print the table as JSON.")] = False,
    output: Annotated[Path | None, typer.Option(help="Write the JSON here as well.")] = None,
) -> None:
    """Strike, let Slurm bring it back, compare. Ends with 1 if a run was lost or came out differently."""
    from benchmarks.cli import check_names
    from lora_dpo.console import out
    from lora_dpo.files import write_text
    from tests.slurm import strikes
    from tests.slurm.cluster import started

    known = (strikes.preempt, strikes.crash_node, strikes.requeue, strikes.kill_rank, strikes.cancel_step)
    kinds = {kind.__name__: kind for kind in (*known, strikes.warn)}
    check_names(strike or (), kinds)
    chosen = [kinds[name] for name in strike or kinds]
    plan = [chosen[number % len(chosen)] for number in range(rounds)]
    done: list[Round] = []
    with tempfile.TemporaryDirectory(prefix="slurm-soak-") as folder, started(Path(folder)) as cluster:
        for result in _soak(cluster, plan, Path(folder), seed):
            done.append(result)
            entry = _summary(done, seed)
            if output:
                write_text(output, json.dumps(entry, indent=2) + "\n")  # after each round: all of them take long
    if as_json:
        out.print_json(json.dumps(entry))
    else:
        _print_table(entry)
    raise typer.Exit(0 if all(each.identical for each in done) else 1)


def _soak(cluster: Cluster, plan: list[Callable[[ClusterRun], None]], folder: Path, seed: int) -> Iterator[Round]:
    from lora_dpo.console import note
    from tests.slurm.runs import ClusterRun
    from tests.tiny import save_tiny_model

    chance = random.Random(seed)
    model = save_tiny_model("llama", folder / "llama")
    plain = ClusterRun(cluster, folder / "undisturbed", model, **_SECTIONS)
    plain.submit()
    if plain.ended()["JobState"] != "COMPLETED":
        raise RuntimeError(f"the undisturbed run failed:\n{plain.output}")
    begun = cluster.job(plain.job)
    seconds = _seconds(begun["RunTime"].split()[0])
    expected = plain.outcome()
    for number, strike in enumerate(plan, start=1):
        run = ClusterRun(cluster, folder / f"round-{number}", model, **_SECTIONS)
        result = _round(run, strike, chance.uniform(0.05, 0.9) * seconds, expected)
        verdict = "identical" if result.identical else "DIFFERENT" if result.survived else "LOST"
        when = f"{result.after_seconds:.0f} s, step {result.at_step}"
        note(f"{number:3}/{len(plan)}  {result.strike:18} after {when:16} {verdict}, {', '.join(result.causes)}")
        if not result.identical:
            note(run.output)
        yield result


def _round(
    run: ClusterRun, strike: Callable[[ClusterRun], None], after_seconds: float, expected: dict[str, Any]
) -> Round:
    from tests.slurm import strikes

    run.submit(*(strikes.PREEMPTABLE if strike is strikes.preempt else ()))
    run.cluster.wait(run.job, ["RUNNING"])
    end = time.monotonic() + after_seconds
    while time.monotonic() < end and run.cluster.state(run.job) == "RUNNING":
        time.sleep(0.2)
    at_step, struck = max(run.checkpoints(), default=0), run.cluster.state(run.job) == "RUNNING"
    if struck:
        strike(run)
    job = run.ended()
    survived = job["JobState"] == "COMPLETED" and (run.path / "report.json").is_file()
    return Round(
        strike=strike.__name__,
        after_seconds=round(after_seconds, 1),
        at_step=at_step,
        struck=struck,
        survived=survived,
        identical=survived and run.outcome() == expected,
        starts=int(job["Restarts"]) + 1,
        causes=[cause for cause, _, _ in run.starts()],
    )


def _seconds(text: str) -> int:
    hours, minutes, seconds = text.split(":")
    return 3600 * int(hours) + 60 * int(minutes) + int(seconds)


def _summary(done: list[Round], seed: int) -> dict[str, Any]:
    from benchmarks.results import environment

    names = dict.fromkeys(each.strike for each in done)
    by_strike = {name: _counts([each for each in done if each.strike == name]) for name in names}
    drawn = [asdict(each) for each in done]
    return {**_counts(done), "seed": seed, "by_strike": by_strike, "drawn": drawn, "environment": environment()}


def _counts(done: list[Round]) -> dict[str, int]:
    return {
        "rounds": len(done),
        "struck": sum(each.struck for each in done),
        "survived": sum(each.survived for each in done),
        "identical": sum(each.identical for each in done),
        "starts_max": max(each.starts for each in done),
    }


def _print_table(entry: dict[str, Any]) -> None:
    from rich.table import Table

    from lora_dpo.console import out

    columns = ("rounds", "struck", "survived", "identical", "starts_max")
    table = Table("strike", "rounds", "struck", "survived", "identical", "most starts")
    for name, counts in {**entry["by_strike"], "all": entry}.items():
        table.add_row(name, *(str(counts[key]) for key in columns))
    out.print(table)


if __name__ == "__main__":
    sys.path[0] = str(_ROOT)  # in place of this folder, so that `benchmarks` and `tests` can be imported
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    from lora_dpo.console import errors_end_the_program, set_up_logging

    set_up_logging()
    with errors_end_the_program():
        app()
