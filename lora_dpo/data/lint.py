"""Drops pairs and examples that teach nothing or contradict each other, and counts why."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Literal

from lora_dpo.data.example import Example
from lora_dpo.data.pair import Asked, Pair

Reason = Literal["empty", "identical", "duplicate", "contradictory"]


def lint(pairs: Iterable[Pair]) -> tuple[list[Pair], Counter[Reason]]:
    """Returns the usable pairs in their order, and how many were dropped for which reason.

    Reasons, each looked for after the ones before it: `empty` (no text in the last turn of the prompt, in
    chosen or in rejected), `identical` (both
    answers are the same but for white space), `duplicate` (an earlier pair says exactly the same), `contradictory`
    (another pair of the same prompt and group prefers the other way round; both are dropped).

    Args:
        pairs: The pairs of one or several sources.
    """
    dropped: Counter[Reason] = Counter()
    kept: dict[tuple[object, ...], Pair] = {}
    for pair in pairs:
        key = (_prompt_key(pair), pair.chosen, pair.rejected)
        if reason := _flaw(pair):
            dropped[reason] += 1
        elif key in kept:
            dropped["duplicate"] += 1
        else:
            kept[key] = pair
    directions = {_direction(pair.chosen, pair.rejected, pair) for pair in kept.values()}
    agreed = [p for p in kept.values() if _direction(p.rejected, p.chosen, p) not in directions]
    if len(agreed) < len(kept):
        dropped["contradictory"] = len(kept) - len(agreed)
    return agreed, dropped


def lint_examples(examples: Iterable[Example]) -> tuple[list[Example], Counter[Reason]]:
    """Returns the usable examples in their order, and how many were dropped for which reason.

    Reasons: `empty` (no text in the last turn of the prompt, or in the answer), `duplicate` (an earlier example says
    exactly the same).

    Args:
        examples: The examples of one or several sources.
    """
    dropped: Counter[Reason] = Counter()
    kept: dict[tuple[object, ...], Example] = {}
    for example in examples:
        key = (_prompt_key(example), example.answer)
        if not example.prompt or not example.prompt[-1]["content"].strip() or not example.answer.strip():
            dropped["empty"] += 1
        elif key in kept:
            dropped["duplicate"] += 1
        else:
            kept[key] = example
    return list(kept.values()), dropped


def _flaw(pair: Pair) -> Reason | None:
    if not pair.prompt or not pair.prompt[-1]["content"].strip():
        return "empty"
    if not pair.chosen.strip() or not pair.rejected.strip():
        return "empty"
    if pair.chosen.split() == pair.rejected.split():
        return "identical"
    return None


def _direction(better: str, worse: str, pair: Pair) -> tuple[object, ...]:
    return (pair.group, _prompt_key(pair), better, worse)


def _prompt_key(pair: Asked) -> tuple[tuple[str, str], ...]:
    return tuple((turn["role"], turn["content"]) for turn in pair.prompt)
