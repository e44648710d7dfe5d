"""The command `lora-dpo`: one function a verb, each a few lines over the library below."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from lora_dpo import __version__
from lora_dpo.console import errors_end_the_program, note, out, set_up_logging
from lora_dpo.credentials import load_token
from lora_dpo.files import write_text

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Align language models with LoRA + DPO: from preferences to a trained adapter and a report.",
    epilog="Start with: [bold]lora-dpo quickstart[/bold]",
)

RecipePath = Annotated[str, typer.Argument(metavar="RECIPE", help="YAML file, or the name of a shipped recipe.")]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="SECTION.KEY=VALUE", help="Values that replace the file's.")
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace an earlier run of this name.")]
Processes = Annotated[int | None, typer.Option(min=1, help="Processes; one a GPU if not given, one without GPUs.")]
ModelOverrides = Annotated[
    list[str] | None, typer.Argument(metavar="MODEL.KEY=VALUE", help="How it is loaded, such as model.dtype=bfloat16.")
]
BaseModel = Annotated[
    str | None,
    typer.Option("--base", metavar="MODEL", help="The model before the training, if it is not where it is said to be."),
]
System = Annotated[str, typer.Option(metavar="TEXT", help="What stands before the first turn.")]
MaxNewTokens = Annotated[int, typer.Option(help="Longest answer, in tokens.")]
Temperature = Annotated[float, typer.Option(help="How freely tokens are drawn; 0 always takes the most likely.")]
TopP = Annotated[float, typer.Option(help="Draw from the most likely tokens with this probability together; 1: off.")]
TopK = Annotated[int, typer.Option(help="Draw from this many of the most likely tokens; 0: off.")]
RepetitionPenalty = Annotated[float, typer.Option(help="Makes tokens that are there already less likely; 1: off.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Check the recipe and print the command, but do not run it.")]
Private = Annotated[
    bool | None, typer.Option("--private/--public", help="Who sees a new repository; private if not said.")
]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]
Tag = Annotated[str | None, typer.Option(metavar="TAG", help="Tag of this version, such as v1.")]
License = Annotated[
    str | None,
    typer.Option(
        "--license", metavar="NAME", help="The Hub's name of the licence, where it is not known from the base."
    ),
]
BaseOnHub = Annotated[
    str | None, typer.Option(metavar="HUB_ID", help="The base on the Hub, where the recipe names a folder or a file.")
]
Template = Annotated[
    str | None, typer.Option(metavar="FILE", help="Jinja template of the card, instead of the package's.")
]


def _examples(*commands: str) -> str:
    """Returns the end of a verb's help, a line each: rich joins lines that no empty one parts."""
    return "\n\n".join(("Examples:", *commands))


def _version(show: bool) -> None:
    if show:
        out.print(f"lora-dpo {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    context: typer.Context,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks of errors, and more log lines.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    context.obj = debug


@app.command(epilog=_examples("lora-dpo quickstart train.epochs=4 run.name=longer"))
def quickstart(context: typer.Context, overrides: Overrides = None, overwrite: Overwrite = False) -> None:
    """Align a small real model on this machine, start to end, in a few minutes: to a report and a standalone model."""
    _run(context, "quickstart", overrides, None, overwrite=overwrite, processes=1)


@app.command(
    epilog=_examples(
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


@app.command(
    epilog=_examples(
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


@app.command(
    epilog=_examples(
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


@app.command(
    epilog=_examples(
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


@app.command(
    "eval",
    epilog=_examples(
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


@app.command(
    epilog=_examples(
        "lora-dpo merge runs/quickstart -o merged",
        "lora-dpo merge first-adapter me/second-adapter -o merged --dtype bf16 --base me/my-base",
        "lora-dpo merge runs/gemma2_9b_truthfulqa_qlora -o merged --onto auto --gguf",
    )
)
def merge(
    sources: Annotated[
        list[str], typer.Argument(metavar="RUN|ADAPTER...", help="Runs, adapter folders or Hub ids, in order.")
    ],
    output: Annotated[str, typer.Option("--output", "-o", metavar="DIR", help="Where the model goes.")],
    dtype: Annotated[
        Literal["auto", "bf16", "fp16", "fp32"],
        typer.Option(help="Precision of the weights; auto leaves each tensor in the base's."),
    ] = "auto",
    onto: Annotated[
        Literal["auto", "full", "quantized"],
        typer.Option(help="For QLoRA: the base as it is, or as 4 bits leave it; auto measures which is nearer."),
    ] = "auto",
    base: Annotated[
        str | None, typer.Option(metavar="MODEL", help="The base model, if it is not where the adapter says.")
    ] = None,
    gguf: Annotated[bool, typer.Option("--gguf", help="Print llama.cpp's command for a GGUF file.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """Merge adapters into their base, shard by shard, and check that the result is the model that was trained."""
    load_token()
    from lora_dpo.merging.merge import Request
    from lora_dpo.merging.merge import merge as run_merge
    from lora_dpo.merging.report import gguf_command, print_merge
    from lora_dpo.recipe.schema import PRECISIONS

    folder = Path(output).expanduser()
    report = run_merge(Request(sources, folder, PRECISIONS.get(dtype), None if onto == "auto" else onto, base))
    out.print_json(json.dumps(report)) if as_json else print_merge(report, folder)
    if gguf:
        note(gguf_command(report, folder))


@app.command(epilog=_examples("lora-dpo show runs/quickstart", "lora-dpo show merged --json"))
def show(
    path: Annotated[str, typer.Argument(metavar="PATH", help="Run, adapter or model: a folder, or a Hub id.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print the whole record as JSON.")] = False,
) -> None:
    """Show what an adapter or a model was made of: its base, the adapters before it, data, versions, and hashes."""
    from lora_dpo.model.ancestry import ancestry, find_record

    place, record = find_record(path)
    out.print_json(json.dumps(record)) if as_json else out.print(ancestry(place, record))


@app.command(
    epilog=_examples(
        "lora-dpo chat runs/quickstart",
        'lora-dpo chat merged --system "Answer in one sentence." --temperature 0',
        'lora-dpo chat me/my-adapter --prompt "Do bats see?"',
        "lora-dpo chat runs/quickstart --json < question.txt",
    )
)
def chat(
    model: Annotated[
        str, typer.Argument(metavar="MODEL_OR_RUN", help="Folder of a run, an adapter or a model, or a Hub id of one.")
    ],
    overrides: ModelOverrides = None,
    prompt: Annotated[
        str | None, typer.Option(metavar="TEXT", help="Answer this and leave; what a pipe brings is answered as well.")
    ] = None,
    system: System = "",
    base: BaseModel = None,
    max_new_tokens: MaxNewTokens = 512,
    temperature: Temperature = 0.7,
    top_p: TopP = 0.95,
    top_k: TopK = 0,
    repetition_penalty: RepetitionPenalty = 1.0,
    seed: Annotated[int | None, typer.Option(help="Makes drawn answers repeatable.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the one answer as JSON.")] = False,
) -> None:
    """Talk to a run, an adapter or a model, and compare it with its base.

    In the terminal, /help shows the commands. With --prompt, or with text on stdin, the answer alone is printed.
    """
    load_token()
    from lora_dpo.inference.chat import chat as talk
    from lora_dpo.inference.found import find_model
    from lora_dpo.inference.sampling import Sampling

    sampling = Sampling(max_new_tokens, temperature, top_p, top_k, repetition_penalty, seed)
    found = find_model(model, base=base, overrides=overrides or ())
    talk(found, sampling, prompt=prompt, system=system, as_json=as_json)


@app.command(
    epilog=_examples(
        "lora-dpo generate runs/quickstart --input prompts.jsonl --output answers.jsonl",
        "lora-dpo generate merged --input questions.txt --output answers.jsonl --temperature 0.7 --seed 1",
    )
)
def generate(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="Folder of a run, an adapter or a model, or a Hub id of one.")
    ],
    source: Annotated[
        str,
        typer.Option(
            "--input",
            metavar="FILE",
            help="Prompts: JSONL, JSON, CSV or Parquet with a column prompt, question, "
            "instruction or messages, or a .txt with a prompt a line.",
        ),
    ],
    output: Annotated[str, typer.Option("--output", "-o", metavar="FILE", help="JSONL file for the answers.")],
    overrides: ModelOverrides = None,
    system: System = "",
    base: BaseModel = None,
    max_new_tokens: MaxNewTokens = 512,
    temperature: Temperature = 0.0,
    top_p: TopP = 1.0,
    top_k: TopK = 0,
    repetition_penalty: RepetitionPenalty = 1.0,
    seed: Annotated[int, typer.Option(help="Of drawn answers.")] = 0,
    batch_size: Annotated[int, typer.Option(min=1, help="Answers written at once.")] = 8,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a file of answers that is there.")] = False,
) -> None:
    """Answer every prompt of a file, greedily if not told otherwise.

    The same command again goes on with a file that is not complete.
    """
    load_token()
    from lora_dpo.inference.found import find_model
    from lora_dpo.inference.generate import Request
    from lora_dpo.inference.generate import generate as run_generate
    from lora_dpo.inference.sampling import Sampling

    sampling = Sampling(max_new_tokens, temperature, top_p, top_k, repetition_penalty, seed)
    found = find_model(model, base=base, overrides=overrides or ())
    run_generate(Request(found, source, Path(output).expanduser(), sampling, system, batch_size, overwrite=overwrite))


@app.command(
    epilog=_examples(
        "lora-dpo push runs/quickstart me/my-model --dry-run",
        "lora-dpo push runs/quickstart me/my-adapter --adapter --tag v1 --public",
        "lora-dpo push merged me/my-model --yes --verify-load",
        "lora-dpo push runs/quickstart me/my-model --prepare   (in a job without network)",
        "lora-dpo push --pending   (on a login node)",
    )
)
def push(
    source: Annotated[
        str | None, typer.Argument(metavar="DIR_OR_RUN", help="Run, or folder of an adapter or a model.")
    ] = None,
    repo: Annotated[
        str | None, typer.Argument(metavar="USER/NAME", help="Where to; hub.repo of the run's recipe if not given.")
    ] = None,
    adapter: Annotated[bool, typer.Option("--adapter", help="Of a run, the adapter.")] = False,
    merged: Annotated[bool, typer.Option("--merged", help="Of a run, the merged model; taken if it is there.")] = False,
    private: Private = None,
    tag: Tag = None,
    revision: Annotated[str, typer.Option(metavar="BRANCH", help="Branch; made if it is not there.")] = "main",
    base_model: BaseOnHub = None,
    license: License = None,
    template: Template = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check everything and show it, but publish nothing.")
    ] = False,
    yes: Yes = False,
    verify_load: Annotated[
        bool, typer.Option("--verify-load", help="Fetch and load it at the end, and compare it with the local one.")
    ] = False,
    prepare: Annotated[
        bool, typer.Option("--prepare", help="Check it and keep it for --pending; needs no network and no token.")
    ] = False,
    pending: Annotated[bool, typer.Option("--pending", help="Publish all that was prepared.")] = False,
) -> None:
    """Publish a run's model or adapter on the Hub, with its card: checked first, then in one commit or not at all.

    The same command again sends only what is missing, and does nothing where nothing has changed.
    """
    from lora_dpo.errors import UserError
    from lora_dpo.hub.packing import Wishes
    from lora_dpo.hub.push import Manner, push_pending
    from lora_dpo.hub.push import push as run_push

    if adapter and merged or prepare and pending or (pending and source is not None) or not (pending or source):
        raise UserError(
            "Say what to publish: DIR_OR_RUN with at most one of --adapter and --merged, or --pending alone.",
            fix="Examples: lora-dpo push --help",
        )
    manner = Manner(yes=yes, dry_run=dry_run, prepare=prepare, verify_load=verify_load)
    if source is None:
        push_pending(manner)
        return
    which: Literal["adapter", "merged"] | None = "adapter" if adapter else "merged" if merged else None
    run_push(source, repo, Wishes(which, private, revision, tag, base_model, license, template), manner)


@app.command(
    epilog=_examples(
        "lora-dpo card runs/quickstart",
        "lora-dpo card runs/quickstart me/my-adapter --adapter --template card.md.jinja -o README.md",
    )
)
def card(
    source: Annotated[str, typer.Argument(metavar="DIR_OR_RUN", help="Run, or folder of an adapter or a model.")],
    repo: Annotated[
        str | None, typer.Argument(metavar="USER/NAME", help="What the card says it is published as.")
    ] = None,
    adapter: Annotated[bool, typer.Option("--adapter", help="Of a run, the adapter.")] = False,
    merged: Annotated[bool, typer.Option("--merged", help="Of a run, the merged model; taken if it is there.")] = False,
    base_model: BaseOnHub = None,
    license: License = None,
    template: Template = None,
    output: Annotated[
        str | None, typer.Option("--output", "-o", metavar="FILE", help="Where it goes; printed if not given.")
    ] = None,
) -> None:
    """Write the model card that would be published; nothing is asked of the Hub."""
    from lora_dpo.hub.packing import Wishes
    from lora_dpo.hub.push import card_of

    which: Literal["adapter", "merged"] | None = "adapter" if adapter else "merged" if merged else None
    wishes = Wishes(which, base=base_model, licence=license, template=template)
    text = card_of(source, repo, wishes)
    if output is None:
        sys.stdout.write(text)
    else:
        write_text(Path(output).expanduser(), text)


@app.command(
    "push-data",
    epilog=_examples(
        "lora-dpo push-data preferences.jsonl me/my-preferences --license cc-by-4.0",
        "lora-dpo push-data pairs.csv me/my-preferences --public --yes",
    ),
)
def push_data(
    source: Annotated[str, typer.Argument(metavar="FILE", help="Preferences, in any format that recipes take.")],
    repo: Annotated[str, typer.Argument(metavar="USER/NAME", help="Where to.")],
    private: Private = None,
    tag: Tag = None,
    license: License = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check everything and show it, but publish nothing.")
    ] = False,
    yes: Yes = False,
) -> None:
    """Publish preferences on the Hub as a data set that every trainer reads, with a card."""
    from lora_dpo.hub.dataset import push_data as run_push_data
    from lora_dpo.hub.push import Manner
    from lora_dpo.hub.remote import Target

    target = Target(repo, "dataset", private is not False, tag=tag)
    run_push_data(source, target, license, Manner(yes=yes, dry_run=dry_run))


@app.command(epilog=_examples("lora-dpo plot runs/quickstart"))
def plot(run: Annotated[str, typer.Argument(metavar="RUN", help="Run folder.")]) -> None:
    """Draw the pictures of a run's training and evaluation again."""
    from lora_dpo.evaluation.plots import draw_run
    from lora_dpo.recipe.run_folder import RunFolder

    for file in draw_run(RunFolder.open(run)):
        out.print(str(file), soft_wrap=True)


@app.command(epilog=_examples("lora-dpo schema > recipe.schema.json   (for `# yaml-language-server: $schema=...`)"))
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


def main() -> None:
    """Runs the command line; a mistake ends with a message and exit code 2."""
    debug = "--debug" in sys.argv[1:]
    set_up_logging(debug=debug)
    with errors_end_the_program(debug=debug):
        # --debug may stand after the verb as well.
        app(["--debug"] * debug + [word for word in sys.argv[1:] if word != "--debug"])
