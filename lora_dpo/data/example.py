"""`Example`: one answer to be learnt, the unit in which the data of the SFT stage travels."""

from __future__ import annotations

from dataclasses import dataclass, field

from lora_dpo.data.pair import Message


@dataclass(frozen=True, slots=True)
class Example:
    """One answer to be learnt. A conversation makes one of each of its answers, in one group.

    Args:
        prompt: The conversation up to the answer; its last turn is the user's.
        answer: Text of the answer, without any template.
        group: Identifies the question. Examples of one group never land on two sides of a split.
        origin: Where the example was read, such as `data.csv, line 40`.
        source: Which of the recipe's sources it came from, counted from 0.
    """

    prompt: tuple[Message, ...]
    answer: str
    group: str
    origin: str = field(default="", compare=False)
    source: int = field(default=0, compare=False)
