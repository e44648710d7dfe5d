"""Votes on base and tuned, for questions that a person types in."""

from __future__ import annotations

from pathlib import Path

from lora_dpo.errors import UserError
from lora_dpo.inference.chat_model import ChatModel
from lora_dpo.inference.sampling import Sampling
from lora_dpo.ui.drafts import Draft, DraftFile
from lora_dpo.ui.lines import Line
from lora_dpo.ui.sides import Side, made_by
from lora_dpo.ui.statistics import wins
from lora_dpo.ui.store import Store, Vote


class CompareBallot:
    """The two sides of a comparison, and where votes on them go.

    Args:
        model: The model, which knows its base.
        sampling: How both write.
        output: The store.

    Attributes:
        sides: Base and tuned.
        store: The store.
        made_by: What tells these sides' votes from others'.

    Raises:
        UserError: The store cannot be used.
    """

    def __init__(self, model: ChatModel, sampling: Sampling, output: Path) -> None:
        self.store = Store(output)
        self.sides = (Side(model, sampling, base=True), Side(model, sampling))
        self.made_by = made_by(self.sides)
        self._sampling = sampling
        self._drafts = DraftFile(output)

    def next_seed(self) -> int:
        """Returns the seed of the next two answers."""
        return self._sampling.seeded().seed or 0

    def add(self, draft: Draft) -> Draft:
        """Keeps what was written, so that it can be voted on; returns what is kept, which may be from before."""
        self._drafts.add(draft)
        return self.find(draft.id)

    def find(self, draft_id: str) -> Draft:
        """Returns what was written.

        Raises:
            UserError: There is nothing of this name.
        """
        draft = self._drafts.all(self.made_by).get(draft_id)
        if draft is None:
            raise UserError("These two answers are not known here.", fix="Ask again: nothing was stored.")
        return draft

    def vote(self, vote: Vote) -> bool:
        """Stores a vote; the same one twice counts once."""
        return self.store.add(vote)

    def undo(self, annotator: str, ticket: str | None = None) -> Line | None:
        """Takes back a person's last vote on these two sides; the same ticket once, see `Store.undo`."""
        return self.store.undo(annotator, self._is_own, ticket)

    def tally(self) -> dict[str, int]:
        """Returns how often each side was preferred, and how often none was."""
        found = wins([vote for vote in self.store.votes() if self._is_own(vote)])
        return {name: found.get(name, 0) for name in (*(side.author()["name"] for side in self.sides), "tie")}

    def _is_own(self, vote: Line) -> bool:
        return vote.get("made_by") == self.made_by and vote.get("via") == "compare"
