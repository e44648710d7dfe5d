"""Arguments and options that several verbs take."""

from __future__ import annotations

from typing import Annotated

import typer

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
Web = Annotated[bool, typer.Option("--web", help="Serve it as a page in a browser instead.")]
Host = Annotated[str, typer.Option(metavar="ADDRESS", help="With --web: where to listen; others can reach 0.0.0.0.")]
Port = Annotated[int, typer.Option(min=0, max=65535, help="With --web: the port; 0 takes a free one.")]
Password = Annotated[
    str | None,
    typer.Option(
        metavar="TEXT",
        envvar="LORA_DPO_PASSWORD",
        help="With --web: what the page asks for, instead of a token in its address. In the variable others cannot see "
        "it among the processes.",
    ),
]
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
OverwriteCard = Annotated[
    bool, typer.Option("--overwrite-card", help="Replace a card that somebody has written on the Hub.")
]


def is_model_override(word: str) -> bool:
    """Returns whether an argument is `model.KEY=VALUE`, where others may stand in its place."""
    return word.startswith("model.") and "=" in word
