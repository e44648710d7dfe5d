"""A question and two answers side by side, in a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from lora_dpo.inference.wrapping import printable
from lora_dpo.ui.questions import Turns

_NARROWEST = 72
"""Columns of a terminal in which two answers still stand side by side."""


def question_panel(turns: Turns, title: str) -> RenderableType:
    """Returns a question, with what was said before it.

    Args:
        turns: The conversation up to the answers.
        title: What stands above it.
    """
    *before, last = turns
    earlier = [Text(f"{turn['role']}: {printable(turn['content'])}", style="dim") for turn in before]
    return Group(
        Text(title, style="dim"),
        *(Padding(text, (0, 0, 0, 2)) for text in earlier),
        Padding(Text(printable(last["content"]), style="bold"), (0, 0, 0, 2)),
    )


def cut_text(text: str, ended: bool) -> str:
    """Returns an answer as a person sees it: one that ran into its limit says so."""
    return text if ended else f"{text} ... (cut)"


def answers_panel(titles: Sequence[str], answers: Sequence[str], width: int) -> RenderableType:
    """Returns two answers: side by side, or one below the other where the terminal is narrow.

    Args:
        titles: What stands above each.
        answers: Their texts.
        width: Columns of the terminal.
    """
    panels = [
        Panel(Text(printable(text) or "(an empty answer)"), title=Text(title), title_align="left")
        for title, text in zip(titles, answers, strict=True)
    ]
    if width < _NARROWEST:
        return Group(*panels)
    table = Table.grid(expand=True)
    for _ in panels:
        table.add_column(ratio=1)
    table.add_row(*panels)
    return table
