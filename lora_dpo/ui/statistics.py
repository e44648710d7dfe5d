"""What the votes of a store say together: counts, how far annotators agree, and which votes should be looked at."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from lora_dpo.data.formats.collected import EDITED
from lora_dpo.ui.lines import Line

_FASTEST_CHARACTERS_PER_SECOND = 200.0
"""Nobody reads as fast: about ten times as fast as a practised reader."""
_FASTEST_SECONDS = 1.0

Ratings = Mapping[str, Mapping[str, str]]
"""What each annotator made of each pair."""


@dataclass(frozen=True, slots=True)
class Agreement:
    """How far two annotators agree.

    Attributes:
        annotators: Their names.
        pairs: How many pairs both have judged.
        observed: The part on which they agree.
        kappa: Cohen's kappa; None where both said the same of every pair, so that chance explains it all.
    """

    annotators: tuple[str, str]
    pairs: int
    observed: float
    kappa: float | None


def summary(votes: Sequence[Line]) -> dict[str, Any]:
    """Returns what `lora-dpo collect --summary --json` prints of the votes that stand.

    Args:
        votes: The votes.
    """
    ratings = ratings_of(votes)
    shared = {pair: by for pair, by in ratings.items() if len(by) > 1}
    return {
        "votes": len(votes),
        "preferences": sum(vote["choice"] in ("left", "right") for vote in votes),
        "edited": sum(bool(vote.get(EDITED)) for vote in votes),
        "commented": sum(bool(vote.get("comment")) for vote in votes),
        "choices": dict(Counter(vote["choice"] for vote in votes)),
        "annotators": dict(Counter(vote["annotator"] for vote in votes)),
        "judged_by_several": len(shared),
        "agreement": [
            {"annotators": list(one.annotators), "pairs": one.pairs, "observed": one.observed, "cohen_kappa": one.kappa}
            for one in agreements(ratings)
        ],
        "fleiss_kappa": fleiss_kappa(ratings),
        "instant": [vote["id"] for vote in votes if is_instant(vote)],
        "contradictory": contradictions(votes),
        "wins": wins(votes),
    }


def ratings_of(votes: Sequence[Line]) -> dict[str, dict[str, str]]:
    """Returns what each annotator made of each pair, by `rating`; skipped ones are left out."""
    ratings: dict[str, dict[str, str]] = defaultdict(dict)
    for vote in votes:
        if vote["choice"] != "skip":
            ratings[vote["pair"]][vote["annotator"]] = rating(vote)
    return dict(ratings)


def rating(vote: Line) -> str:
    """Returns what a vote says of the two answers, whichever side they were shown on.

    Returns:
        `first` or `second` for the better one of the answers in the order of their texts; or both_good, both_bad.
    """
    if vote["choice"] not in ("left", "right"):
        return vote["choice"]
    is_first = vote["left"]["text"] <= vote["right"]["text"]
    return "first" if is_first == (vote["choice"] == "left") else "second"


def agreements(ratings: Ratings) -> list[Agreement]:
    """Returns how far every two annotators agree who have judged the same pairs.

    Cohen: A Coefficient of Agreement for Nominal Scales (1960).

    Args:
        ratings: What each made of each pair.
    """
    found = []
    for one, other in combinations(sorted({name for by in ratings.values() for name in by}), 2):
        both = [(by[one], by[other]) for by in ratings.values() if one in by and other in by]
        if not both:
            continue
        observed = sum(mine == theirs for mine, theirs in both) / len(both)
        mine, theirs = (Counter(said) for said in zip(*both, strict=True))
        chance = sum(mine[said] * theirs[said] for said in mine) / len(both) ** 2
        found.append(Agreement((one, other), len(both), observed, _kappa(observed, chance)))
    return found


def fleiss_kappa(ratings: Ratings) -> float | None:
    """Returns Fleiss' kappa over all pairs that several have judged, however many each.

    Fleiss: Measuring Nominal Scale Agreement among Many Raters (1971); with numbers of raters that differ, each pair
    weighs the same in the observed agreement.

    Args:
        ratings: What each made of each pair.

    Returns:
        It, or None where no pair was judged by several, or all said the same of every pair.
    """
    counts = [Counter(by.values()) for by in ratings.values() if len(by) > 1]
    if not counts:
        return None
    observed = sum(sum(n * (n - 1) for n in c.values()) / (c.total() * (c.total() - 1)) for c in counts) / len(counts)
    all_of_them = sum(counts, Counter())
    chance = sum((n / all_of_them.total()) ** 2 for n in all_of_them.values())
    return _kappa(observed, chance)


def is_instant(vote: Line) -> bool:
    """Returns whether a vote came before anybody can have read the answers."""
    characters = len(vote["left"]["text"]) + len(vote["right"]["text"])
    needed = max(_FASTEST_SECONDS, characters / _FASTEST_CHARACTERS_PER_SECOND)
    return vote["choice"] != "skip" and vote["seconds"] < needed


def contradictions(votes: Sequence[Line]) -> list[dict[str, Any]]:
    """Returns the pairs of which one answer was preferred here and the other there, with the votes' ids by annotator.

    `lora-dpo data` drops both directions of them. Edited votes are left out: their chosen answer is no longer one of
    the two, so they contradict nothing and stay.

    Args:
        votes: The votes.
    """
    by_pair: dict[str, list[Line]] = defaultdict(list)
    for vote in votes:
        if vote["choice"] in ("left", "right") and not vote.get(EDITED):
            by_pair[vote["pair"]].append(vote)
    return [
        {"pair": pair, "votes": {vote["id"]: vote["annotator"] for vote in group}}
        for pair, group in by_pair.items()
        if len({rating(vote) for vote in group}) > 1
    ]


def wins(votes: Sequence[Line]) -> dict[str, int]:
    """Returns how often each author's answer was preferred, where the two authors differ; and ties."""
    found: Counter[str] = Counter()
    for vote in votes:
        names = {side: str(vote[side]["author"].get("name")) for side in ("left", "right")}
        if names["left"] == names["right"] or vote["choice"] == "skip":
            continue
        found[names.get(vote["choice"], "tie")] += 1
    return dict(found)


def _kappa(observed: float, chance: float) -> float | None:
    return None if chance == 1 else (observed - chance) / (1 - chance)
