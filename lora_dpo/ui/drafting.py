"""Answers that are written ahead, by a thread of its own, while a person reads the ones before."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence

from lora_dpo.errors import UserError
from lora_dpo.ui.drafts import TOO_ALIKE, Answered, Draft, likeness, question_id
from lora_dpo.ui.questions import Turns
from lora_dpo.ui.sides import Side, made_by, seed_for

ATTEMPTS = 4
"""How often two answers are drawn, where they are too alike."""

_log = logging.getLogger(__name__)


class Drafter:
    """Writes two different answers to a question.

    Args:
        sides: What writes them.
        seed: Of the collection.
    """

    def __init__(self, sides: tuple[Side, Side], seed: int) -> None:
        self.sides = sides
        self.made_by = made_by(sides)
        self._seed = seed
        self._stop = threading.Event()

    def stop(self) -> None:
        """Lets `draft` return soon."""
        self._stop.set()

    def draft(self, turns: Turns) -> Draft | None:
        """Writes two answers; where they are too alike, others are drawn, and the least alike ones taken.

        Args:
            turns: The question.

        Returns:
            The draft, or None where it was stopped.

        Raises:
            UserError: The question is too long, or it is answered in the same words each time.
        """
        kept: list[Answered] = []
        best: tuple[float, Draft] | None = None
        attempts = ATTEMPTS if any(side.sampling.temperature > 0 for side in self.sides) else 1
        for attempt in range(attempts):
            written = self._both(turns) if attempt == 0 else self._other(turns, kept, attempt)
            if written is None:
                return None
            kept = written
            draft = Draft(turns, (kept[0], kept[1]), self.made_by)
            alike = likeness(kept[0].text, kept[1].text)
            if alike < TOO_ALIKE:
                return draft
            if best is None or alike < best[0]:
                best = alike, draft
        if best is None or best[0] == 1.0:
            raise UserError(f"Both answers are the same, however often they are drawn (tried: {attempts}).")
        return best[1]

    def _both(self, turns: Turns) -> list[Answered] | None:
        one, other = self.sides
        seeds = [seed_for(self._seed, question_id(turns), number, 0) for number in (0, 1)]
        if one == other:  # one pass through the weights a token writes both
            return one.answers(turns, seeds, self._stop)
        found = [side.answers(turns, [seed], self._stop) for side, seed in zip(self.sides, seeds, strict=True)]
        return None if None in found else [answers[0] for answers in found if answers is not None]

    def _other(self, turns: Turns, kept: Sequence[Answered], attempt: int) -> list[Answered] | None:
        """Draws the second answer again; where that is always the same, the first."""
        number = 1 if self.sides[1].sampling.temperature > 0 else 0
        seed = seed_for(self._seed, question_id(turns), number, attempt)
        if (written := self.sides[number].answers(turns, [seed], self._stop)) is None:
            return None
        return [kept[0], written[0]] if number == 1 else [written[0], kept[1]]


class Ahead:
    """A thread that writes drafts as long as some are wanted.

    Args:
        drafter: What writes them.
        wanted: Returns the question that is to be drafted next, or None.
        done: Is given each draft.
        failed: Is given a question that cannot be asked, and why.
    """

    def __init__(
        self,
        drafter: Drafter,
        wanted: Callable[[], Turns | None],
        done: Callable[[Draft], None],
        failed: Callable[[Turns, str], None],
    ) -> None:
        self.error: BaseException | None = None
        self._drafter, self._wanted, self._done, self._failed = drafter, wanted, done, failed
        self._wake = threading.Event()
        self._leave = False
        self._thread = threading.Thread(target=self._run, name="drafting", daemon=True)

    def start(self) -> None:
        """Begins."""
        self._thread.start()

    def wake(self) -> None:
        """Says that there may be something to draft."""
        self._wake.set()

    def close(self) -> None:
        """Ends the thread; an answer that is being written is given up."""
        self._leave = True
        self._drafter.stop()
        self._wake.set()
        if self._thread.ident is not None:
            self._thread.join()

    def _run(self) -> None:
        try:
            while not self._leave:
                self._wake.clear()
                turns = self._wanted()
                if turns is None:
                    self._wake.wait()
                    continue
                self._draft(turns)
        except BaseException as error:  # is raised where the next question is asked for
            _log.debug("drafting ended", exc_info=True)
            self.error = error
            self._failed((), "")

    def _draft(self, turns: Turns) -> None:
        try:
            draft = self._drafter.draft(turns)
        except UserError as error:
            self._failed(turns, error.what)
            return
        if draft is not None:
            self._done(draft)


def names(sides: Sequence[Side]) -> str:
    """Returns what writes the answers, in one line."""
    one, other = (side.author()["name"] for side in sides)
    return f"{one}, twice" if one == other else f"{one} and {other}"
