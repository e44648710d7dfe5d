"""One standalone model, and the Hub: merge, push, card, push-data."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from lora_dpo.cli.app import examples, verbs
from lora_dpo.cli.options import BaseOnHub, License, OverwriteCard, Private, Tag, Template, Yes, is_model_override
from lora_dpo.console import note, out
from lora_dpo.credentials import load_token
from lora_dpo.errors import UserError
from lora_dpo.files import write_text

verb = verbs("Publish")


@verb(
    epilog=examples(
        "lora-dpo merge runs/quickstart -o merged",
        "lora-dpo merge first-adapter me/second-adapter -o merged --dtype bf16 --base me/my-base",
        "lora-dpo merge runs/gemma2_9b_truthfulqa_qlora -o merged --onto auto --gguf",
    )
)
def merge(
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="RUN|ADAPTER... [MODEL.KEY=VALUE...]",
            help="Runs, adapter folders or Hub ids, in order; how the base is loaded, such as "
            "model.trust_remote_code=true.",
        ),
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
    overrides = [word for word in sources if is_model_override(word)]
    adapters = [word for word in sources if not is_model_override(word)]
    if not adapters:
        raise UserError(
            "There is no adapter to merge.", fix="Name a run or an adapter before the model.KEY=VALUE words."
        )
    asked = None if onto == "auto" else onto
    report = run_merge(Request(adapters, folder, PRECISIONS.get(dtype), asked, base, overrides))
    out.print_json(json.dumps(report)) if as_json else print_merge(report, folder)
    if gguf:
        note(gguf_command(report, folder))


@verb(
    epilog=examples(
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
    overwrite_card: OverwriteCard = False,
) -> None:
    """Publish a run's model or adapter on the Hub, with its card: checked first, then in one commit or not at all.

    The same command again sends only what is missing, and does nothing where nothing has changed.
    """
    from lora_dpo.hub.packing import Wishes
    from lora_dpo.hub.push import Manner, push_pending
    from lora_dpo.hub.push import push as run_push

    if pending == (source is not None) or (prepare and pending):
        raise UserError(
            "Say what to publish: DIR_OR_RUN with at most one of --adapter and --merged, or --pending alone.",
            fix="Examples: lora-dpo push --help",
        )
    manner = Manner(yes, dry_run, prepare, verify_load, overwrite_card)
    if source is None:
        given = {
            **{"--adapter": adapter, "--merged": merged, "--private or --public": private is not None, "--tag": tag},
            **{"--revision": revision != "main", "--base-model": base_model, "--license": license},
            **{"--template": template, "--verify-load": verify_load},
        }
        if refused := [name for name, value in given.items() if value]:
            raise UserError(
                f"{refused[0]} does not go with --pending.",
                why="It sends what was prepared as it was prepared.",
                fix="Give it to `lora-dpo push --prepare`, or publish the folder itself.",
            )
        push_pending(manner)
        return
    if prepare and verify_load:
        raise UserError(
            "--verify-load does not go with --prepare: there is nothing to load yet.",
            fix="Leave it out; names, sizes and hashes are compared when it is sent.",
        )
    wishes = Wishes(_which(adapter, merged), private, revision, tag, base_model, license, template)
    run_push(source, repo, wishes, manner)


def _which(adapter: bool, merged: bool) -> Literal["adapter", "merged"] | None:
    """Returns what of a run is meant."""
    if adapter and merged:
        raise UserError("--adapter and --merged do not go together.", fix="Give one of them; they are two models.")
    return "adapter" if adapter else "merged" if merged else None


@verb(
    epilog=examples(
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

    wishes = Wishes(_which(adapter, merged), base=base_model, licence=license, template=template)
    text = card_of(source, repo, wishes)
    if output is None:
        sys.stdout.write(text)
        return
    file = Path(output).expanduser()
    try:
        if file.is_dir():
            raise IsADirectoryError(f"{file} is a folder")
        write_text(file, text)
    except OSError as error:
        raise UserError(f"The card cannot be written to {file}: {error}", fix="Give another file with -o.") from None


@verb(
    "push-data",
    epilog=examples(
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
    overwrite_card: OverwriteCard = False,
) -> None:
    """Publish preferences on the Hub as a data set that every trainer reads, with a card."""
    from lora_dpo.hub.dataset import push_data as run_push_data
    from lora_dpo.hub.push import Manner
    from lora_dpo.hub.remote import Target

    target = Target(repo, "dataset", private is not False, tag=tag, private_is_asked=private is not None)
    run_push_data(source, target, license, Manner(yes=yes, dry_run=dry_run, overwrite_card=overwrite_card))
