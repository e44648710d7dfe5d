"""From a recipe to a trained adapter: quickstart, run, data, sft, dpo, schema."""

from __future__ import annotations

import json
import sys
from typing import Annotated, Any, Literal

import typer

from lora_dpo.cli.app import examples, verbs
from lora_dpo.cli.options import DryRun, Overrides, Overwrite, Processes, RecipePath
from lora_dpo.console import out
from lora_dpo.credentials import load_token

verb = verbs("Train")


@verb(epilog=examples("lora-dpo quickstart train.epochs=4 run.name=longer"))
def quickstart(context: typer.Context, overrides: Overrides = None, overwrite: Overwrite = False) -> None:
    """Align a small real model on this machine, start to end, in a few minutes: to a report and a standalone model."""
    _run(context, "quickstart", overrides, None, overwrite=overwrite, processes=1)


@verb(
    epilog=examples(
        "lora-dpo run recipes/tinyllama_sft_dpo.yaml",
        "lora-dpo run smollm2_sft_dpo data.path=pairs.jsonl sft.path=answers.jsonl --through dpo",
        "lora-dpo run recipes/gemma2_9b_truthfulqa.yaml merge.dtype=bfloat16 --dry-run",
        "lora-dpo run recipes/quickstart.yaml hub.repo=me/smollm2-truthful",
    )
)
def run(
    context: typer.Context,
    recipe: RecipePath,
    overrides: Overrides = None,
    through: Annotated[
        Literal["sft", "dpo", "merge", "push"] | None,
        typer.Option(help="The last stage; all that the recipe has if not given."),
    ] = None,
    overwrite: Overwrite = False,
    processes: Processes = None,
    dry_run: DryRun = False,
) -> None:
    """Carry out all stages of a recipe: SFT where it has one, DPO with its report, the merged model, publication.

    What is complete is not done again: the same command goes on where it stopped.
    """
    _run(context, recipe, overrides, through, overwrite=overwrite, processes=processes, dry_run=dry_run)


@verb(
    epilog=examples(
        "lora-dpo data recipes/gpt2_ultrafeedback.yaml",
        "lora-dpo data quickstart data.path=pairs.jsonl --json",
        "lora-dpo data tinyllama_sft_dpo --sft",
    )
)
def data(
    recipe: RecipePath,
    overrides: Overrides = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print counts and hashes as JSON.")] = False,
    of_sft: Annotated[bool, typer.Option("--sft", help="Show the data of the SFT stage instead.")] = False,
) -> None:
    """Build pairs and splits, check them, and show one example as the model reads it."""
    load_token()
    from lora_dpo.recipe.loading import load_recipe
    from lora_dpo.recipe.stages import stage_recipe

    checked = load_recipe(recipe, overrides or ())
    checked = stage_recipe(checked, "sft") if of_sft else checked
    from lora_dpo.data.build import prepare
    from lora_dpo.data.build_examples import prepare_examples
    from lora_dpo.data.preview import print_preview
    from lora_dpo.model.base import load_tokenizer

    prepared = (prepare_examples if of_sft else prepare)(checked, load_tokenizer(checked.model))
    if as_json:
        out.print_json(json.dumps(prepared.summary()))
    else:
        print_preview(prepared)


@verb(
    epilog=examples(
        "lora-dpo sft recipes/tinyllama_sft_dpo.yaml sft.path=answers.csv",
        "lora-dpo sft quickstart sft.path=answers.jsonl sft.epochs=2 run.name=mine",
    )
)
def sft(
    context: typer.Context,
    recipe: RecipePath,
    overrides: Overrides = None,
    overwrite: Overwrite = False,
    processes: Processes = None,
    dry_run: DryRun = False,
) -> None:
    """Teach a model answers (SFT) before DPO: from sft.path to a report, as the run NAME-sft.

    `lora-dpo dpo` with the same recipe then goes on from there. The same command again goes on with a run that was
    interrupted, and shows the report of one that is finished.
    """
    _train(context, recipe, overrides, stage="sft", overwrite=overwrite, processes=processes, dry_run=dry_run)


@verb(
    epilog=examples(
        "lora-dpo dpo recipes/gemma2_9b_truthfulqa.yaml train.learning_rate=1e-5",
        "lora-dpo dpo quickstart data.path=pairs.jsonl run.name=mine",
        "lora-dpo dpo quickstart evaluation.folds=5 run.name=folds",
        "lora-dpo dpo quickstart --reference-only",
    )
)
def dpo(
    context: typer.Context,
    recipe: RecipePath,
    overrides: Overrides = None,
    overwrite: Overwrite = False,
    processes: Processes = None,
    dry_run: DryRun = False,
    reference_only: Annotated[
        bool,
        typer.Option(
            "--reference-only",
            help="Only compute the reference log-probs and keep them in the cache, where every run on the same model "
            "and data finds them. The run folder is not touched.",
        ),
    ] = False,
) -> None:
    """Train a recipe here, from its data to its report; prints the `accelerate launch` line that it runs.

    The same command again goes on with a run that was interrupted, and shows the report of one that is finished.
    """
    _train(
        context,
        recipe,
        overrides,
        overwrite=overwrite,
        processes=processes,
        dry_run=dry_run,
        reference_only=reference_only,
    )


@verb(epilog=examples("lora-dpo schema > recipe.schema.json   (for `# yaml-language-server: $schema=...`)"))
def schema() -> None:
    """Print the recipe's JSON schema, for completion and checks in editors."""
    from lora_dpo.recipe.schema import Recipe

    sys.stdout.write(json.dumps(Recipe.model_json_schema(), indent=2) + "\n")


def _train(context: typer.Context, recipe: str, overrides: list[str] | None, **options: Any) -> None:
    from lora_dpo.cluster.start import Request, train

    code = train(Request(recipe, tuple(overrides or ()), debug=bool(context.obj), **options))
    if code:
        raise typer.Exit(code)


def _run(
    context: typer.Context,
    recipe: str,
    overrides: list[str] | None,
    through: Literal["sft", "dpo", "merge", "push"] | None,
    **options: Any,
) -> None:
    load_token()
    from lora_dpo.cluster.start import Request
    from lora_dpo.run import run as run_stages

    verb = ("run", *(("--through", through) if through is not None else ()))
    request = Request(recipe, tuple(overrides or ()), debug=bool(context.obj), verb=verb, **options)
    if code := run_stages(request, through):
        raise typer.Exit(code)
