"""The application that the verbs' modules add their commands to."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Annotated, Any

import typer

from lora_dpo import __version__
from lora_dpo.console import out

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Align language models with LoRA + DPO: from preferences to a trained adapter and a report.",
    epilog="Start with: [bold]lora-dpo quickstart[/bold]",
)


def verbs(group: str) -> Callable[..., Any]:
    """Returns the decorator that adds a verb to this group of `lora-dpo --help`."""
    return partial(app.command, rich_help_panel=group)


def examples(*commands: str) -> str:
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
