"""What happens to pairs and examples that are longer than the model may read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import Generic, Literal, TypeVar

from lora_dpo.data.chat import TokenisedExample, TokenisedPair
from lora_dpo.errors import UserError

T = TypeVar("T", TokenisedPair, TokenisedExample)


@dataclass(frozen=True, slots=True)
class Fitted(Generic[T]):
    """Pairs (or examples) that fit, and how many were dropped or had their prompt cut."""

    pairs: list[T]
    dropped: int
    truncated: int


def fit_length(
    pairs: Sequence[T],
    max_length: int,
    policy: Literal["drop", "truncate_prompt", "error"],
    bos_token_id: int | None,
    *,
    key: str = "dpo.max_length",
) -> Fitted[T]:
    """Makes every sequence fit; completions are never cut.

    Args:
        pairs: Tokenised pairs, or examples.
        max_length: Longest prompt + completion in tokens.
        policy: `drop` the pair, `truncate_prompt` from the left (a leading BOS stays), or `error`.
        bos_token_id: The tokenizer's BOS, if it has one.
        key: The recipe's key that `max_length` is from.

    Returns:
        The pairs that fit. A pair whose completion leaves no room for two tokens of the prompt is dropped.

    Raises:
        UserError: The policy is `error` and a pair is too long, or `max_length` is shorter than every prompt.
    """
    if pairs and all(len(pair.prompt_ids) >= max_length for pair in pairs):
        shortest = min(len(pair.prompt_ids) for pair in pairs)
        raise UserError(
            f"{key} {max_length} is shorter than every prompt, so no answer would be left to train on.",
            why=f"The shortest prompt has {shortest} tokens, the median {pairs[0].noun} "
            f"{round(median(pair.length for pair in pairs))}.",
            fix=f"Set {key} to at least {min(pair.length for pair in pairs)}.",
        )
    fitted: list[T] = []
    dropped = truncated = 0
    for pair in pairs:
        room = max_length - (pair.length - len(pair.prompt_ids))
        if pair.length <= max_length:
            fitted.append(pair)
        elif policy == "error":
            raise UserError(
                f"The {pair.noun} has {pair.length} tokens, more than {key} {max_length}.",
                fix=f"Raise {key}, or set data.over_length to drop or truncate_prompt.",
                where=pair.origin,
            )
        elif policy == "truncate_prompt" and room >= 2:
            fitted.append(replace(pair, prompt_ids=_cut_left(pair.prompt_ids, room, bos_token_id)))
            truncated += 1
        else:
            dropped += 1
    return Fitted(fitted, dropped, truncated)


def _cut_left(ids: list[int], room: int, bos_token_id: int | None) -> list[int]:
    if bos_token_id is not None and ids[0] == bos_token_id:
        return [bos_token_id, *ids[-(room - 1) :]]
    return ids[-room:]
