"""Who reads which question just now, in a file that all processes see: they then share the work."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path

from lora_dpo.ui.lines import LineFile

_HELD_SECONDS = 600.0
"""Somebody who does not vote for so long no longer keeps a question from others."""
_RENEWED_SECONDS = _HELD_SECONDS / 2
"""Somebody who asks for the same question again after so long keeps it longer."""


class HoldFile:
    """The questions that are being read, in a file beside the preferences; a person holds one at a time.

    Args:
        preferences: The file of the preferences.
        made_by: Which pair of sides writes the answers; other sides' questions are others.

    Raises:
        UserError: The file cannot be used.
    """

    def __init__(self, preferences: Path, made_by: str) -> None:
        self._file = LineFile(preferences.with_name(f".{preferences.name}.held"))
        self._made_by = made_by

    def holders(self) -> dict[str, set[str]]:
        """Returns who holds each question, in whatever process."""
        found: dict[str, set[str]] = defaultdict(set)
        for annotator, question in self._held_since(time.time() - _HELD_SECONDS).items():
            found[question].add(annotator)
        return found

    def take(self, question: str, annotator: str, is_free: Callable[[], bool]) -> bool:
        """Lets a person hold a question, and no other one.

        Args:
            question: The question.
            annotator: The person.
            is_free: Asked while no other process may take one.

        Returns:
            Whether the person holds it now.
        """
        if self._held_since(time.time() - _RENEWED_SECONDS).get(annotator) == question:
            return True
        return self._append(annotator, question, unless=lambda: not is_free())

    def release(self, people: Iterable[str]) -> None:
        """Takes from people what they hold."""
        held = self._held_since(time.time() - _HELD_SECONDS)
        for annotator in people:
            if annotator in held:
                self._append(annotator, None)

    def _append(self, annotator: str, question: str | None, unless: Callable[[], bool] = lambda: False) -> bool:
        line = {"annotator": annotator, "question": question, "made_by": self._made_by, "at": round(time.time(), 3)}
        return self._file.append(line, unless)

    def _held_since(self, oldest: float) -> dict[str, str]:
        """Returns the question that each person has taken last, and since a time in seconds since the epoch."""
        self._file.refresh()
        own = [line for line in self._file.lines if line.get("made_by") == self._made_by]
        last = {line["annotator"]: line for line in own}
        return {
            annotator: line["question"]
            for annotator, line in last.items()
            if line["question"] is not None and line["at"] > oldest
        }
