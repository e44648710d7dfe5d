"""Measures one optimizer step inside TRL's trainer, on the CPU, with prefix trees and without.

    python benchmarks/step.py --workload best --steps 3
    python benchmarks/step.py --model gpt2 --workload long --arms B,Bc,D
    python benchmarks/step.py --pairs pairs.jsonl --pairs-per-step 16 --json mine.json

README.md beside this file says what the arms are and how to read the JSON.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from benchmarks.workloads import Workload

_ROOT = Path(__file__).resolve().parent.parent
_DATA = _ROOT.parent / "shared" / "data"
_OWN = "pairs"

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="markdown")


@app.command(
    epilog="Examples: python benchmarks/step.py --workload best --steps 3   |   "
    "python benchmarks/step.py --model gpt2 --workload long --arms B,Bc,D   |   "
    "python benchmarks/step.py --pairs pairs.jsonl --pairs-per-step 16 --json mine.json"
)
def main(
    model: Annotated[
        str,
        typer.Option(
            help="quickstart (SmolLM2-135M); gpt2, llama, gemma2, gemma3 (random weights, 6 layers x 512); or a folder."
        ),
    ] = "quickstart",
    workload: Annotated[
        list[str] | None,
        typer.Option(help="best, all, ultrafeedback or long; may be repeated. All four if neither this nor --pairs."),
    ] = None,
    pairs: Annotated[Path | None, typer.Option(help="Preferences of your own, in any format of the project.")] = None,
    pairs_per_step: Annotated[
        int | None, typer.Option(min=1, help="Pairs of an optimizer step; 8 for --pairs, else the workload's own.")
    ] = None,
    steps: Annotated[int, typer.Option(min=1, help="Measured steps of each arm.")] = 5,
    warm_up: Annotated[int, typer.Option(min=0, help="Steps before them that do not count.")] = 1,
    arms: Annotated[str, typer.Option(help="Which arms, with commas between them.")] = "A,B,Bc,C,D",
    data: Annotated[Path, typer.Option(help="Folder with truthfulqa/ and ultrafeedback/.")] = _DATA,
    json_file: Annotated[Path, typer.Option("--json", help="Where the numbers go; other workloads in it stay.")] = Path(
        __file__
    ).parent
    / "results"
    / "step.json",
    fresh: Annotated[bool, typer.Option("--fresh", help="Drop what is in the JSON file.")] = False,
) -> None:
    """Measure one optimizer step inside TRL's trainer, on the CPU: TRL and prefix trees in turn.

    All arms have the same weights, adapter, pairs, precision (fp32) and optimizer. Each has a process of its own, and
    they take steps one after the other, in an order that changes.
    """
    from benchmarks.arms import ARMS
    from benchmarks.cli import check_names, report, working
    from benchmarks.meters import process_meter
    from benchmarks.models import QUICKSTART, NamedModel, section
    from benchmarks.results import summarise
    from benchmarks.session import Setting, measure
    from benchmarks.workloads import NAMES
    from lora_dpo.console import err
    from lora_dpo.errors import UserError
    from lora_dpo.model.base import load_tokenizer

    keys = arms.split(",")
    names = workload or ([] if pairs else list(NAMES))
    check_names(keys, ARMS)
    check_names(names, NAMES)
    tokenizer = load_tokenizer(section(model))
    measured = 0
    for name in [*names, *([_OWN] if pairs else [])]:
        try:
            chosen = _workload(name, tokenizer, model, pairs or Path(), data, pairs_per_step, steps + warm_up)
        except FileNotFoundError as error:
            err.print(f"{name} is left out: there is no {error.filename}. Name its folder with --data.", soft_wrap=True)
            continue
        with working() as say:
            result = measure(chosen, keys, Setting(NamedModel(model), "process", process_meter(), say), warm_up)
        key = name if model == QUICKSTART else f"{Path(model).name}/{name}"
        report(key, summarise(result, model), json_file, fresh=fresh and not measured)
        measured += 1
    if not measured:
        raise UserError("Nothing was measured.", why=f"There is no data in {data}.", fix="Name its folder with --data.")


def _workload(
    name: str,
    tokenizer: PreTrainedTokenizerBase,
    model: str,
    own: Path,
    data: Path,
    pairs_per_step: int | None,
    n_steps: int,
) -> Workload:
    from dataclasses import replace

    from benchmarks.models import section
    from benchmarks.workloads import LONG, TEXTS, Text, Workload, from_file, synthetic

    if name == "long":
        lengths = LONG if pairs_per_step is None else replace(LONG, prompts=pairs_per_step)
        return Workload(name, synthetic(lengths, n_steps, len(tokenizer)))
    text = Text(str(own.resolve()), "best", 1024, 8) if name == _OWN else TEXTS[name]
    file = data / text.file  # an absolute path, as one's own is, stays what it is
    if name != _OWN and not file.exists():
        raise FileNotFoundError(2, "No such file", str(file))
    return Workload(
        name,
        from_file(
            file,
            tokenizer,
            section(model).name,
            pairs=text.pairs,
            max_length=text.max_length,
            pairs_per_step=pairs_per_step or text.pairs_per_step,
            n_steps=n_steps,
        ),
    )


if __name__ == "__main__":
    sys.path[0] = str(_ROOT)  # in place of this folder, so that `benchmarks` can be imported
    from lora_dpo.console import errors_end_the_program, set_up_logging

    set_up_logging()
    with errors_end_the_program():
        app()
