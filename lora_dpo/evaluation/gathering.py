"""Puts together what the parts of an evaluation found of each question."""

from __future__ import annotations

from collections.abc import Sequence

from lora_dpo.data.chat import TokenisedPair
from lora_dpo.evaluation.generation import Written
from lora_dpo.evaluation.multiple_choice import Choice
from lora_dpo.evaluation.outcomes import Outcome
from lora_dpo.evaluation.preference import PairScores, of_questions
from lora_dpo.evaluation.style import style_of


def gather(
    pairs: Sequence[TokenisedPair], scores: PairScores | None, choices: Sequence[Choice], written: Written
) -> list[Outcome]:
    """Puts together what was found of each question.

    Args:
        pairs: The held-out pairs.
        scores: Their log-probabilities; None where there are no pairs.
        choices: The multiple-choice questions.
        written: The answers.
    """
    found: dict[str, Outcome] = {}
    for each in choices:
        question = each.question
        found[question.group] = Outcome(
            question.group,
            question.prompt[-1]["content"],
            question.category,
            dict(each.before),
            dict(each.after),
            {"best": question.best, "favourite before": each.favourites[0], "favourite after": each.favourites[1]},
        )
    groups = list(dict.fromkeys(pair.pair.group for pair in pairs))
    first = {pair.pair.group: pair.pair for pair in reversed(pairs)}
    for group in groups:
        outcome = found.setdefault(group, Outcome(group, first[group].prompt[-1]["content"]))
        outcome.texts.update(chosen=first[group].chosen, rejected=first[group].rejected)
    for metric, values in of_questions(scores).items() if scores is not None else ():
        _add(found, groups, metric, *values)
    answered = [pair.pair.group for pair in written.asked]
    before, after = style_of(written.greedy["before"]), style_of(written.greedy["after"])
    for metric in before:
        _add(found, answered, metric, before[metric], after[metric])
    return list(found.values())


def _add(
    found: dict[str, Outcome], groups: Sequence[str], metric: str, before: Sequence[float], after: Sequence[float]
) -> None:
    for group, old, new in zip(groups, before, after, strict=True):
        found[group].before[metric], found[group].after[metric] = float(old), float(new)
