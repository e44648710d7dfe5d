"""Strikes small real runs with faults, starts them again, and compares them with undisturbed ones, bit for bit.

    python benchmarks/faults.py --rounds 50 --json
    python benchmarks/faults.py --rounds 3 --fault "disk full" --mode single

A round is one fault at a random moment: a process or all of them killed (in a step, a save, the reference pass, the
data), a damaged file in the newest checkpoint, a full disk, a hang, a NaN, a signal, a stop file. Then the run is
started again until it ends. It survives if it ends, and is identical if adapter, metrics (but for wall times) and
report are.
"""

from __future__ import annotations

import json
import random
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from tests.distributed.soak import Round

_ROOT = Path(__file__).resolve().parent.parent

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="markdown")


@app.command(epilog="Example: python benchmarks/faults.py --rounds 50 --json")
def main(
    rounds: Annotated[int, typer.Option(min=1, help="Faults, one after the other; every kind comes in turn.")] = 15,
    fault: Annotated[list[str] | None, typer.Option(help="Only this kind; may be given more than once.")] = None,
    mode: Annotated[list[str] | None, typer.Option(help="Only this mode; may be given more than once.")] = None,
    seed: Annotated[int, typer.Option(help="Draws the moments.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print the table as JSON.")] = False,
    output: Annotated[Path | None, typer.Option(help="Write the JSON here as well.")] = None,
) -> None:
    """Strike, start again, compare. Ends with 1 if a run was lost or came out differently."""
    from benchmarks.cli import check_names
    from lora_dpo.console import out
    from lora_dpo.files import write_text
    from tests.distributed.runs import MODES
    from tests.distributed.soak import FAULTS

    check_names(fault or (), FAULTS)
    check_names(mode or (), MODES)
    faults, modes = list(fault or FAULTS), list(mode or MODES)
    # Every fault comes in turn, each time in another mode.
    plan = [(faults[n % len(faults)], modes[(n + n // len(faults)) % len(modes)]) for n in range(rounds)]
    with tempfile.TemporaryDirectory(prefix="faults-") as folder:
        done = []
        for result in _soak(plan, Path(folder), seed):
            done.append(result)
            entry = _summary(done, seed)
            if output:
                write_text(output, json.dumps(entry, indent=2) + "\n")  # after each round: all of them take long
    if as_json:
        out.print_json(json.dumps(entry))
    else:
        _print_table(entry)
    raise typer.Exit(0 if all(each.identical for each in done) else 1)


def _soak(plan: list[tuple[str, str]], folder: Path, seed: int) -> Iterator[Round]:
    from rich.text import Text

    from lora_dpo.console import err, note
    from tests.distributed.runs import MODES, SmallRun
    from tests.distributed.soak import run_round
    from tests.tiny import save_tiny_model

    chance, undisturbed = random.Random(seed), {}
    models = {name: save_tiny_model(name, folder / name) for name in {MODES[mode].architecture for _, mode in plan}}
    for number, (fault, name) in enumerate(plan, start=1):
        mode = MODES[name]
        if name not in undisturbed:
            plain = SmallRun(folder / f"plain-{name}", models[mode.architecture])
            first = plain.start(mode)
            if first.returncode:
                raise RuntimeError(f"the undisturbed run of {name} failed:\n{first.stderr}")
            undisturbed[name] = plain.outcome()
        run = SmallRun(folder / f"round-{number}", models[mode.architecture])
        result = run_round(fault, name, mode, run, undisturbed[name], chance)
        verdict = "identical" if result.identical else "DIFFERENT" if result.survived else "LOST"
        lost = f"{result.steps_lost} steps lost, {result.starts} starts"
        note(f"{number:3}/{len(plan)}  {fault:30} {name:8} {verdict}, {lost}{'' if result.struck else ', missed'}")
        if not result.identical:
            err.print(Text(result.said))
        yield result


def _summary(done: list[Round], seed: int) -> dict[str, Any]:
    from benchmarks.results import environment
    from tests.distributed.runs import SAVE_STEPS

    by_fault: dict[str, dict[str, Any]] = {}
    for name in dict.fromkeys(each.fault for each in done):
        of_name = [each for each in done if each.fault == name]
        by_fault[name] = _counts(of_name) | {"modes": dict(Counter(each.mode for each in of_name))}
    entry = {**_counts(done), "steps_between_saves": SAVE_STEPS, "seed": seed, "by_fault": by_fault}
    return {**entry, "environment": environment()}


def _print_table(entry: dict[str, Any]) -> None:
    from rich.table import Table

    from lora_dpo.console import out

    table = Table("fault", "rounds", "survived", "identical", "most steps lost")
    for name, counts in {**entry["by_fault"], "all": entry}.items():
        table.add_row(name, *(str(counts[key]) for key in ("rounds", "survived", "identical", "steps_lost_max")))
    out.print(table)


def _counts(done: list[Round]) -> dict[str, int]:
    return {
        "rounds": len(done),
        "struck": sum(each.struck for each in done),
        "survived": sum(each.survived for each in done),
        "identical": sum(each.identical for each in done),
        "steps_lost_max": max(each.steps_lost for each in done),
    }


if __name__ == "__main__":
    sys.path[0] = str(_ROOT)  # in place of this folder, so that `benchmarks` can be imported
    from lora_dpo.console import errors_end_the_program, set_up_logging

    set_up_logging()
    with errors_end_the_program():
        app()
