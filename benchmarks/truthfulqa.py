"""TruthfulQA before and after, on held-out questions of every fold, and on questions of another author.

    python benchmarks/truthfulqa.py --questions TruthfulQA.csv
    python benchmarks/truthfulqa.py --questions TruthfulQA.csv train.epochs=1 run.name=shorter

It runs `lora-dpo dpo` and `lora-dpo eval`, whose runs stay below runs/: interrupted, it goes on where it was.
"""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

_ROOT = Path(__file__).resolve().parent.parent
_OWN_QUESTIONS = "bundled/misconceptions"
_PARTS = ("verdict", "training", "multiple_choice", "preference", "generation", "cost", "folds", "caveats")

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="markdown")


@app.command(epilog="Example: python benchmarks/truthfulqa.py --questions TruthfulQA.csv")
def main(
    questions: Annotated[str, typer.Option(help="TruthfulQA.csv, from the authors' repository.")],
    overrides: Annotated[list[str] | None, typer.Argument(metavar="SECTION.KEY=VALUE")] = None,
    recipe: Annotated[str, typer.Option(help="A recipe with evaluation.folds.")] = "smollm2_truthfulqa",
    output: Annotated[Path, typer.Option(help="Where the numbers go.")] = Path("benchmarks/results/truthfulqa.json"),
) -> None:
    """Train every fold, evaluate, and carry adapters over to the other questions, both ways."""
    from benchmarks.results import environment
    from lora_dpo.console import err, out
    from lora_dpo.evaluation import tables
    from lora_dpo.files import write_json
    from lora_dpo.recipe.folds import fold_runs
    from lora_dpo.recipe.loading import load_recipe
    from lora_dpo.recipe.run_folder import RunFolder

    commands: list[str] = []

    def lora_dpo(*words: str) -> None:
        commands.append(shlex.join(["lora-dpo", *words]))
        err.print(f"$ {commands[-1]}", soft_wrap=True)
        subprocess.run([sys.executable, "-m", "lora_dpo", *words], check=True)

    def report(folder: Path) -> dict[str, Any]:
        return json.loads((folder / "report.json").read_text(encoding="utf-8"))

    words = [f"data.path={questions}", *(overrides or ())]
    folded = load_recipe(recipe, words)
    lora_dpo("dpo", recipe, *words)
    fold = fold_runs(folded)[0].path
    away = fold / "evaluation" / "misconceptions"
    lora_dpo("eval", str(fold), "evaluation.samples=0", "--data", _OWN_QUESTIONS, "--output", str(away))
    name = f"{folded.run.name}_from_misconceptions"
    other = [*words, f"data.path={_OWN_QUESTIONS}", "evaluation.folds=null", "data.split.test=0.25", f"run.name={name}"]
    lora_dpo("dpo", recipe, *other)
    trained = RunFolder.of(load_recipe(recipe, other)).path
    back = trained / "evaluation" / "truthfulqa"
    lora_dpo("eval", str(trained), "evaluation.samples=0", "--data", questions, "--output", str(back))

    found = {
        "held_out_folds": report(RunFolder.of(folded).path),
        "misconceptions_by_fold_1": report(away),
        "misconceptions_held_out": report(trained),
        "truthfulqa_by_misconceptions": report(back),
    }
    for title, content in found.items():
        out.print(f"\n{title}: {content['verdict']}")
        for row in tables.rows(content):
            out.print("  ".join(row))
    parts = {title: {key: content[key] for key in _PARTS if key in content} for title, content in found.items()}
    values = json.loads(folded.model_dump_json())
    write_json(output, {"commands": commands, "recipe": values, **parts, "environment": environment()})


if __name__ == "__main__":
    sys.path[0] = str(_ROOT)  # in place of this folder, so that `benchmarks` can be imported
    from lora_dpo.console import errors_end_the_program, set_up_logging

    set_up_logging()
    with errors_end_the_program():
        app()
