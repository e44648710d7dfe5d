"""Collecting preferences in a terminal, with a key a vote."""

from __future__ import annotations

import contextlib
import time

import click

from lora_dpo.console import interrupts_are_seen, out, show_error
from lora_dpo.errors import UserError
from lora_dpo.inference.wrapping import printable
from lora_dpo.ui.desk import Desk, Showing
from lora_dpo.ui.keys import forget_typed, read_key, single_keys
from lora_dpo.ui.panels import answers_panel, cut_text, question_panel
from lora_dpo.ui.store import AlreadyVotedError, Choice, Vote

_HELP = (
    ("left, 1", "the left answer is better"),
    ("right, 2", "the right answer is better"),
    ("g", "both are good"),
    ("b", "both are bad"),
    ("s", "skip: no opinion, or no good question"),
    ("e", "edit the better one, in $EDITOR; what you save is the chosen answer"),
    ("c", "write a comment, which is stored with the vote"),
    ("u", "undo the last vote, and ask it again"),
    ("?", "show this"),
    ("q", "leave; the same command goes on later"),
)
_LINE = "[1 or <-] left  [2 or ->] right  [g]ood both  [b]ad both  [s]kip\n[e]dit  [c]omment  [u]ndo  [?] help  [q]uit"
_CHOICES: dict[str, Choice] = {
    "1": "left", "left": "left", "2": "right", "right": "right", "g": "both_good", "b": "both_bad", "s": "skip",
}  # fmt: skip
_SAID = {
    "left": "left is better",
    "right": "right is better",
    "both_good": "both good",
    "both_bad": "both bad",
    "skip": "skipped",
}


class CollectTerminal:
    """A person who votes in a terminal.

    Args:
        desk: What is asked.
        annotator: Who votes.
    """

    def __init__(self, desk: Desk, annotator: str) -> None:
        self._desk, self._annotator = desk, annotator
        self._comment = ""
        self._since = 0.0

    def run(self) -> None:
        """Shows and asks, until nothing is left or the person leaves."""
        self._help()
        while (showing := self._next()) is not None:
            if not self._vote_on(showing):
                return
        for why in sorted(set(self._desk.progress(self._annotator).left_out.values())):
            _say(f"Left out: {why}")
        _say("That was the last question.")

    def _next(self) -> Showing | None:
        showing = self._desk.next(self._annotator, timeout_seconds=0.1)
        progress = self._desk.progress(self._annotator)
        if showing is not None or progress.is_complete:
            return showing
        if not out.is_terminal or out.is_dumb_terminal:
            _say(progress.waits_for)
            return self._desk.next(self._annotator)
        with out.status(progress.waits_for):
            return self._desk.next(self._annotator)

    def _vote_on(self, showing: Showing) -> bool:
        """Asks until there is a vote, an undo, or the person leaves; returns whether there is more to do."""
        self._show(showing)
        forget_typed()
        while True:
            with single_keys():
                key = read_key()
            if key in ("q", "end"):
                return False
            try:
                if key in _CHOICES:
                    self._store(showing, _CHOICES[key])
                    return True
                if key == "e":
                    if self._edit(showing):
                        return True
                elif key == "u":
                    self._undo()
                    return True
                elif key == "c":
                    self._ask_comment()
                elif key == "?":
                    self._help()
            except AlreadyVotedError as error:
                show_error(str(error))
                return True
            except UserError as error:
                show_error(str(error))

    def _show(self, showing: Showing) -> None:
        progress = self._desk.progress(self._annotator)
        out.rule(characters="-", style="dim")
        out.print(question_panel(showing.draft.turns, f"Question {progress.done + 1} of {progress.total}"))
        answers = [cut_text(side.text, side.ended) for side in (showing.left, showing.right)]
        out.print(answers_panel(("left", "right"), answers, out.width))
        out.print(_LINE, style="dim", markup=False)
        self._since, self._comment = time.monotonic(), ""

    def _store(self, showing: Showing, choice: Choice, edited: str | None = None) -> None:
        seconds = time.monotonic() - self._since
        vote = Vote(showing.ticket, showing.draft, choice, self._annotator, seconds, edited, self._comment)
        self._desk.vote(vote)
        said = f"{_SAID[choice]}, edited" if edited is not None else _SAID[choice]
        if showing.left.by != showing.right.by:
            said += f". Left was {showing.left.by}, right {showing.right.by}"
        _say(f"{said}.")

    def _edit(self, showing: Showing) -> bool:
        """Asks which answer is better and opens it in the editor; returns whether that made a vote."""
        _say("Which one is better, and is to be edited? [1 or <-] left, [2 or ->] right, any other key: neither")
        with single_keys():
            choice = _CHOICES.get(read_key())
        if choice not in ("left", "right"):
            _say("Nothing was changed.")
            return False
        better = showing.left if choice == "left" else showing.right
        try:
            edited = click.edit(better.text, extension=".txt")
        except click.ClickException as error:
            raise UserError(f"The editor failed: {error.message}", fix="Set EDITOR, as in EDITOR=nano.") from None
        if edited is None or not edited.strip() or edited.strip() == better.text:
            _say("Nothing was changed, so nothing is stored: [1] or [2] chooses an answer as it is.")
            return False
        self._store(showing, choice, edited)
        return True

    def _ask_comment(self) -> None:
        with contextlib.suppress(EOFError), interrupts_are_seen():
            self._comment = printable(input("Comment: ")).strip()
        _say("It is stored with your vote." if self._comment else "No comment.")

    def _undo(self) -> None:
        undone = self._desk.undo(self._annotator)
        _say("Nothing to undo." if undone is None else f"Undone: {_SAID[undone['choice']]}. It is asked again.")

    def _help(self) -> None:
        for key, text in _HELP:
            out.print(f"  {key:9} {text}", style="dim", markup=False)


def _say(text: str) -> None:
    out.print(text, style="dim", markup=False)
