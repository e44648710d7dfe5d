"""UltraFeedback in its original form: one instruction, several completions, each with a score.

Cui et al.: UltraFeedback, https://arxiv.org/abs/2310.01377; `openbmb/UltraFeedback` on the Hub.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from lora_dpo.data.formats.base import (
    BadRowError,
    Candidate,
    Format,
    Options,
    Values,
    checked_text,
    optional_text,
    prompt_of,
    select,
    value_of,
    with_system,
)
from lora_dpo.data.pair import prompt_text

# The mean of the fine-grained ratings comes first: openbmb's overall_score has known errors (10 written for 1).
_SCORES = ("fine-grained_score", "overall_score", "score", "rating")


def _convert(row: Values, options: Options) -> list[Candidate]:
    column = "instruction" if "instruction" in row else "prompt"
    prompt = with_system(prompt_of(value_of(row, column), f"column '{column}'"), optional_text(row, "system"))
    scored = _scored_answers(row)
    if options.pairs == "best" and scored:
        scored = [max(scored, key=lambda answer: answer[1]), min(scored, key=lambda answer: answer[1])]
    candidates = [
        Candidate(prompt, better, worse)
        for better, high in scored
        for worse, low in scored
        if high > low and high - low >= options.min_margin
    ]
    return select(candidates, options, prompt_text(prompt))


def _scored_answers(row: Values) -> list[tuple[str, float]]:
    """Returns answers and scores, all by the key that most of them have, so that they can be compared."""
    completions = value_of(row, "completions")
    if not isinstance(completions, list) or not all(isinstance(one, Mapping) for one in completions):
        raise BadRowError("column 'completions' is not a list of objects with a response and a score")
    if not completions:
        return []
    key = max(_SCORES, key=lambda name: sum(_number(completion.get(name)) is not None for completion in completions))
    if not any(set(_SCORES) & completion.keys() for completion in completions):
        raise BadRowError(f"no completion has a score; known are {', '.join(_SCORES)}")
    return [
        (checked_text(completion.get("response"), f"column 'completions', item {number}, key 'response'"), score)
        for number, completion in enumerate(completions, start=1)
        if (score := _number(completion.get(key))) is not None
    ]


def _number(value: object) -> float | None:
    """Returns a score, or None for what is no number: UltraFeedback writes N/A where the judge gave none."""
    try:
        number = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) and not isinstance(value, bool) else None


def _is_scored(columns: set[str], rows: Sequence[Values]) -> bool:
    return "completions" in columns and bool(columns & {"instruction", "prompt"})


SCORED = Format(
    name="UltraFeedback (scored completions)",
    columns=f"instruction or prompt, completions: [{{response, {' or '.join(_SCORES)}}}]",
    recognises=_is_scored,
    convert=_convert,
    scores=frozenset({"completions"}),
)
