"""Divides two conversations into the prompt that they share and the two answers that differ."""

from __future__ import annotations

from itertools import takewhile

from lora_dpo.data.formats.base import BadRowError
from lora_dpo.data.pair import Message


def shared_prompt(chosen: tuple[Message, ...], rejected: tuple[Message, ...]) -> tuple[tuple[Message, ...], str, str]:
    """Returns the common prompt, the chosen answer and the rejected answer.

    The prompt is the longest run of whole turns that both begin with. Conversations that part before the last turn have
    answered different questions by then, so they make no pair.

    Raises:
        BadRowError: What follows the common turns is not exactly one turn of the assistant on both sides.
    """
    common = sum(1 for _ in takewhile(lambda turns: turns[0] == turns[1], zip(chosen, rejected, strict=False)))
    # Two equal conversations still end in an answer; lint drops them as identical.
    common = min(common, len(chosen) - 1, len(rejected) - 1)
    if common < 1:
        raise BadRowError("chosen and rejected share no turn that could be the prompt")
    for name, conversation in (("chosen", chosen), ("rejected", rejected)):
        rest = [turn["role"] for turn in conversation[common:]]
        if rest != ["assistant"]:
            raise BadRowError(
                f"chosen and rejected part after turn {common}, and what follows in '{name}' is {', '.join(rest)} "
                "instead of one assistant turn"
            )
    return chosen[:common], chosen[-1]["content"], rejected[-1]["content"]
