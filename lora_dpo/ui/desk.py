"""What is asked next, of whom, and what becomes of the answer: the same for the terminal and for all browsers."""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from lora_dpo.errors import UserError
from lora_dpo.ui.drafting import Ahead, Drafter
from lora_dpo.ui.drafts import Answered, Draft, DraftFile, question_id
from lora_dpo.ui.holds import HoldFile
from lora_dpo.ui.lines import Line
from lora_dpo.ui.questions import Turns
from lora_dpo.ui.store import Store, Vote, check_annotator, new_ticket

AHEAD = 2
"""Drafts that wait for each person."""
_LOOK_SECONDS = 1.0
"""How often the files are looked at meanwhile: other processes may have drafted or voted."""


@dataclass(frozen=True, slots=True)
class Showing:
    """A draft that is put before a person, blind.

    Attributes:
        ticket: Its name, which decides the order of the sides.
        draft: What is shown.
    """

    ticket: str
    draft: Draft

    @property
    def left(self) -> Answered:
        """The answer on the left."""
        return self.draft.shown(self.ticket)[0]

    @property
    def right(self) -> Answered:
        """The answer on the right."""
        return self.draft.shown(self.ticket)[1]


@dataclass(frozen=True, slots=True)
class Progress:
    """How far somebody is.

    Attributes:
        done: Questions that this person need not answer (any more).
        total: All questions that can be asked.
        with_others: Questions that this person would be asked if others were not reading their answers.
        left_out: Questions that cannot be asked, and why.
    """

    done: int
    total: int
    with_others: int
    left_out: dict[str, str]

    @property
    def is_complete(self) -> bool:
        """Whether nothing is left."""
        return self.done >= self.total

    @property
    def waits_for(self) -> str:
        """What is to be said to somebody who is asked nothing although something is left."""
        if self.with_others == self.total - self.done:
            return "Others are reading what is left ..."
        return "The answers are being written ..."


class Desk:
    """Hands out drafts and takes votes; several threads may use it.

    A question is done with when as many people as wanted have voted on it, or this person has.

    Args:
        questions: What is asked, in this order.
        store: Where votes go.
        drafter: What writes the answers.
        votes: How many people are to vote on a question; they then see the same two answers.
    """

    def __init__(self, questions: list[Turns], store: Store, drafter: Drafter, votes: int = 1) -> None:
        self.store = store
        self.votes = votes
        self.made_by = drafter.made_by
        self._questions = {question_id(turns): turns for turns in questions}
        self._drafts = DraftFile(store.path)
        self._left_out: dict[str, str] = {}
        self._holds = HoldFile(store.path, self.made_by)
        self._people: set[str] = set()
        self._changed = threading.Condition()
        self._ahead = Ahead(drafter, self._wanted, self._add, self._fail)

    @contextmanager
    def open(self, *people: str) -> Iterator[Desk]:
        """Drafts ahead until it is left.

        Args:
            people: Who is known to come.
        """
        self._people |= set(people)
        self._ahead.start()
        try:
            yield self
        finally:
            self._ahead.close()
            self._holds.release(self._people)

    def next(self, annotator: str, timeout_seconds: float | None = None) -> Showing | None:
        """Returns what is put before a person next.

        Args:
            annotator: The person.
            timeout_seconds: How long to wait for a draft at most; None waits for ever.

        Returns:
            The showing; None where there is nothing left, or the time is over (see `progress`).

        Raises:
            UserError: This is no name for an annotator.
        """
        check_annotator(annotator)
        end = None if timeout_seconds is None else time.monotonic() + timeout_seconds
        with self._changed:
            self._people.add(annotator)
            while True:
                self._raise_error()
                if not self._left(annotator):
                    return None
                draft = self._taken(annotator)
                self._ahead.wake()
                if draft is not None:
                    return Showing(new_ticket(), draft)
                left = None if end is None else end - time.monotonic()
                if left is not None and left <= 0:
                    return None
                self._changed.wait(_LOOK_SECONDS if left is None else min(left, _LOOK_SECONDS))

    def find(self, draft_id: str) -> Draft:
        """Returns a draft by its id.

        Raises:
            UserError: There is none.
        """
        try:
            return self._drafts.all(self.made_by)[draft_id]
        except KeyError:
            raise UserError(
                "These two answers are not known here.", fix="Ask for the next question again: nothing was stored."
            ) from None

    def vote(self, vote: Vote) -> bool:
        """Stores a vote; the same one twice counts once.

        Returns:
            Whether it was new.
        """
        added = self.store.add(vote)
        with self._changed:
            self._changed.notify_all()
        self._ahead.wake()
        return added

    def undo(self, annotator: str, ticket: str | None = None) -> Line | None:
        """Takes back a person's last vote on these questions, which is asked again; None where there is none.

        Args:
            annotator: The person.
            ticket: What the same request has when it is sent again; see `Store.undo`.
        """

        def is_own(vote: Line) -> bool:
            return vote.get("made_by") == self.made_by and vote.get("question") in self._questions

        undone = self.store.undo(annotator, is_own, ticket)
        with self._changed:
            self._changed.notify_all()
        return undone

    def progress(self, annotator: str) -> Progress:
        """Returns how far a person is."""
        with self._changed:
            return self._progress(annotator)

    def _voters(self) -> dict[str, dict[str, str]]:
        """Returns who has made what of each question."""
        voters: dict[str, dict[str, str]] = defaultdict(dict)
        for vote in self.store.votes():
            if vote.get("made_by") == self.made_by:
                voters[str(vote.get("question"))][vote["annotator"]] = vote["choice"]
        return voters

    def _progress(self, annotator: str) -> Progress:
        left = self._left(annotator)
        with_others = len(self._by_question().keys() & left) - len(self._open(annotator))
        total = len(self._questions.keys() - self._left_out.keys())
        return Progress(total - len(left), total, with_others, dict(self._left_out))

    def _left(self, annotator: str) -> set[str]:
        """Returns the questions that somebody is still to answer."""
        voters = self._voters()
        asked = self._questions.keys() - self._left_out.keys()
        return {question for question in asked if not self._is_done(voters.get(question, {}), annotator)}

    def _is_done(self, voters: dict[str, str], annotator: str) -> bool:
        return annotator in voters or sum(choice != "skip" for choice in voters.values()) >= self.votes

    def _taken(self, annotator: str) -> Draft | None:
        """Returns the first draft that can be shown to a person, who holds it then; None where there is none."""
        for draft in self._open(annotator):
            if self._holds.take(draft.question, annotator, lambda draft=draft: draft in self._open(annotator)):
                return draft
        return None

    def _open(self, annotator: str) -> list[Draft]:
        """Returns the drafts that can be shown to a person, the questions' order kept."""
        voters, drafts, holders = self._voters(), self._by_question(), self._holds.holders()
        found = []
        for question in self._questions:
            seen = voters.get(question, {})
            if question not in drafts or self._is_done(seen, annotator):
                continue
            others = len(holders[question] - seen.keys() - {annotator})
            if others + sum(choice != "skip" for choice in seen.values()) < self.votes:
                found.append(drafts[question])
        return found

    def _by_question(self) -> dict[str, Draft]:
        """Returns the draft of each question: the one that has votes, else the first."""
        voted = {vote.get("pair") for vote in self.store.votes()}
        found: dict[str, Draft] = {}
        for draft in self._drafts.all(self.made_by).values():
            if draft.made_by != self.made_by:
                continue
            if draft.question not in found or (draft.id in voted and found[draft.question].id not in voted):
                found[draft.question] = draft
        return found

    def _wanted(self) -> Turns | None:
        """Returns the question that is drafted next: somebody would otherwise soon have to wait for it."""
        with self._changed:
            voters, drafts = self._voters(), self._by_question()
            for annotator in self._people:
                if len(self._open(annotator)) > AHEAD:
                    continue
                for question, turns in self._questions.items():
                    if question in drafts or question in self._left_out:
                        continue
                    if not self._is_done(voters.get(question, {}), annotator):
                        return turns
            return None

    def _add(self, draft: Draft) -> None:
        self._drafts.add(draft)
        with self._changed:
            self._changed.notify_all()

    def _fail(self, turns: Turns, why: str) -> None:
        with self._changed:
            if turns:
                self._left_out[question_id(turns)] = why
            self._changed.notify_all()

    def _raise_error(self) -> None:
        if self._ahead.error is not None:
            raise self._ahead.error
