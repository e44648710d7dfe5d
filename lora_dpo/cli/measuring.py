"""What came of a run: eval, plot, show."""

from __future__ import annotations

import json
from typing import Annotated, Literal

import typer

from lora_dpo.cli.app import examples, verbs
from lora_dpo.cli.options import Overrides
from lora_dpo.console import note, out

verb = verbs("Look")


@verb(
    "eval",
    epilog=examples(
        "lora-dpo eval runs/quickstart",
        "lora-dpo eval runs/quickstart --prompt harness --json",
        "lora-dpo eval runs/quickstart --data pairs.jsonl evaluation.samples=8",
        "lora-dpo eval me/my-adapter --data bundled/misconceptions",
        "lora-dpo eval my-model --base HuggingFaceTB/SmolLM2-135M-Instruct --data pairs.jsonl --processes 2",
        "lora-dpo eval runs/quickstart --export alpaca-eval",
        "lora-dpo eval runs/quickstart --harness arc_easy,hellaswag --limit 100",
    ),
)
def evaluate(
    context: typer.Context,
    subject: Annotated[
        str, typer.Argument(metavar="SUBJECT", help="Folder of a run, an adapter or a model, or a Hub id of one.")
    ],
    overrides: Overrides = None,
    data: Annotated[
        str | None,
        typer.Option(metavar="FILE_OR_HUB_ID", help="Test set in any format that recipes take; all of it is held out."),
    ] = None,
    base: Annotated[
        str | None, typer.Option(metavar="MODEL", help="The model before, for an adapter or a model from elsewhere.")
    ] = None,
    output: Annotated[
        str | None, typer.Option(metavar="FOLDER", help="Where the results go; in the run, or below evaluations/.")
    ] = None,
    prompt: Annotated[
        Literal["chat", "harness"],
        typer.Option(help="How multiple choice is put: chat (as in training), harness (as the benchmark does)."),
    ] = "chat",
    processes: Annotated[int, typer.Option(min=1, help="Processes that share the work.")] = 1,
    export: Annotated[
        Literal["alpaca-eval", "mt-bench"] | None,
        typer.Option(help="Only write answers, before and after, for this benchmark's own judge."),
    ] = None,
    questions: Annotated[
        str | None, typer.Option(metavar="FILE", help="What --export asks, in the benchmark's form.")
    ] = None,
    harness: Annotated[
        str | None, typer.Option(metavar="TASK,...", help="Tasks of lm-evaluation-harness, run by the harness itself.")
    ] = None,
    harness_path: Annotated[
        str | None, typer.Option(metavar="FOLDER", help="Folder with harness tasks of your own, a YAML file each.")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Documents of each harness task at most.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """Measure before and after: a run on its held-out data, any adapter or model on a test set.

    What was measured before an interruption is kept: the same command goes on from there.
    """
    options = {
        "--data": data,
        "--base": base,
        "--output": output,
        "--prompt": prompt,
        "--export": export,
        "--questions": questions,
        "--harness": harness,
        "--harness-path": harness_path,
        "--limit": limit,
    }
    words = [subject, *(overrides or ())]
    words += [word for name, value in options.items() if value is not None for word in (name, str(value))]
    words += ["--json"] * as_json + ["--debug"] * bool(context.obj)
    _evaluate(words, processes)


@verb(epilog=examples("lora-dpo plot runs/quickstart"))
def plot(run: Annotated[str, typer.Argument(metavar="RUN", help="Run folder.")]) -> None:
    """Draw the pictures of a run's training and evaluation again."""
    from lora_dpo.evaluation.plots import draw_run
    from lora_dpo.recipe.run_folder import RunFolder

    for file in draw_run(RunFolder.open(run)):
        out.print(str(file), soft_wrap=True)


@verb(epilog=examples("lora-dpo show runs/quickstart", "lora-dpo show merged --json"))
def show(
    path: Annotated[str, typer.Argument(metavar="PATH", help="Run, adapter or model: a folder, or a Hub id.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print the whole record as JSON.")] = False,
) -> None:
    """Show what an adapter or a model was made of: its base, the adapters before it, data, versions, and hashes."""
    from lora_dpo.model.ancestry import ancestry, find_record

    place, record = find_record(path)
    out.print_json(json.dumps(record)) if as_json else out.print(ancestry(place, record))


def _evaluate(words: list[str], processes: int) -> None:
    if processes == 1:
        from lora_dpo.eval import main as evaluate_here

        evaluate_here(words)
        return
    from lora_dpo.cluster.launch import plan_evaluation
    from lora_dpo.cluster.supervise import run_launch

    launch = plan_evaluation(words, processes=processes)
    note(f"$ {launch.line}")
    if code := run_launch(launch, None):
        raise typer.Exit(code)
