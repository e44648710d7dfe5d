"""Pairs, and examples of an SFT stage, as the planner sees them."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

NOT_SCORED = -100
"""The label of a token that the loss leaves out, as PyTorch and TRL have it."""


@dataclass(frozen=True, slots=True)
class PairTokens:
    """One pair; an example is one without a worse answer.

    Attributes:
        prompt: Prompt tokens.
        chosen: Tokens of the better answer.
        rejected: Tokens of the worse answer.
        group: What belongs together: pairs of one question.
    """

    prompt: Sequence[int]
    chosen: Sequence[int]
    rejected: Sequence[int]
    group: Hashable

    @property
    def sequences(self) -> list[list[int]]:
        """Prompt and answer, twice."""
        return [[*self.prompt, *self.chosen], [*self.prompt, *self.rejected]]

    @property
    def distinct_tokens(self) -> int:
        """Nodes of the tree of these two sequences: the prompt and a common beginning of the answers count once."""
        both = zip(self.chosen, self.rejected, strict=False)
        shorter = min(len(self.chosen), len(self.rejected))
        shared = next((place for place, (one, other) in enumerate(both) if one != other), shorter)
        return len(self.prompt) + len(self.chosen) + len(self.rejected) - shared


def pair_tokens(rows: Any) -> list[PairTokens]:
    """Returns what the planner sees of a data set with the columns `prompt_ids`, `chosen_ids` and `rejected_ids`."""
    columns = (rows["prompt_ids"], rows["chosen_ids"], rows["rejected_ids"])
    return [
        PairTokens(prompt, chosen, rejected, tuple(prompt)) for prompt, chosen, rejected in zip(*columns, strict=True)
    ]


def example_tokens(rows: Any) -> list[PairTokens]:
    """Returns what the planner sees of a data set with the columns `input_ids`, `labels` and `group`."""
    found = []
    for ids, labels, group in zip(rows["input_ids"], rows["labels"], rows["group"], strict=True):
        start = next((place for place, label in enumerate(labels) if label != NOT_SCORED), len(labels))
        found.append(PairTokens(ids[:start], ids[start:], (), group))
    return found
