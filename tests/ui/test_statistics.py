from __future__ import annotations

from pathlib import Path

import pytest

from lora_dpo.data.lint import lint
from lora_dpo.data.sources import load_pairs
from lora_dpo.recipe.schema import DataSection
from lora_dpo.ui.statistics import agreements, fleiss_kappa, is_instant, rating, summary
from lora_dpo.ui.store import Store
from tests.ui.votes import draft, vote


def test_a_rating_does_not_depend_on_the_sides() -> None:
    ratings = {rating(vote(prefers="No, none.").line()) for _ in range(20)}
    assert ratings == {"first"}  # "No" comes before "Yes"
    assert rating(vote(choice="both_bad").line()) == "both_bad"


def test_cohens_kappa_by_hand() -> None:
    # 20 + 15 of 50 alike: observed 0.7; one says yes 25 times, the other 30 times: chance 0.5.
    said = [("yes", "yes")] * 20 + [("yes", "no")] * 5 + [("no", "yes")] * 10 + [("no", "no")] * 15
    ratings = {str(place): {"ann": mine, "bob": theirs} for place, (mine, theirs) in enumerate(said)}
    ratings["alone"] = {"ann": "yes"}
    (found,) = agreements(ratings)
    assert (found.annotators, found.pairs) == (("ann", "bob"), 50)
    assert found.observed == pytest.approx(0.7)
    assert found.kappa == pytest.approx((0.7 - 0.5) / (1 - 0.5))


def test_fleiss_kappa_of_his_own_example() -> None:
    # Fleiss (1971), as in the textbooks: 10 subjects, 14 raters, 5 categories; kappa 0.210.
    table = [
        (0, 0, 0, 0, 14), (0, 2, 6, 4, 2), (0, 0, 3, 5, 6), (0, 3, 9, 2, 0), (2, 2, 8, 1, 1),
        (7, 7, 0, 0, 0), (3, 2, 6, 3, 0), (2, 5, 3, 2, 2), (6, 5, 2, 1, 0), (0, 2, 2, 3, 7),
    ]  # fmt: skip
    ratings = {}
    for place, counts in enumerate(table):
        said = [str(category) for category, count in enumerate(counts) for _ in range(count)]
        ratings[str(place)] = {f"rater {number}": value for number, value in enumerate(said)}
    assert fleiss_kappa(ratings) == pytest.approx(0.210, abs=5e-4)


def test_without_a_second_opinion_there_is_no_agreement() -> None:
    assert fleiss_kappa({"a": {"ann": "first"}}) is None
    assert agreements({"a": {"ann": "first"}, "b": {"bob": "first"}}) == []
    assert fleiss_kappa({"a": {"ann": "first", "bob": "first"}}) is None  # chance alone would agree as well


def test_votes_that_nobody_can_have_read_are_flagged() -> None:
    assert is_instant(vote(seconds=0.9).line())
    assert not is_instant(vote(seconds=1.1).line())
    long = draft(one="word " * 200, other="other " * 200)  # 2,200 characters: 11 s
    assert is_instant(vote(long, seconds=10.9).line())
    assert not is_instant(vote(long, seconds=11.1).line())
    assert not is_instant(vote(choice="skip", seconds=0.0).line())


def test_the_summary_counts_and_flags() -> None:
    shared, own = draft("Shared?", one="a", other="b"), draft("Own?", one_by="x", one="c", other="d")
    votes = [
        vote(shared, prefers="a", annotator="ann").line(),
        vote(shared, prefers="b", annotator="bob", seconds=0.1).line(),
        vote(own, prefers="c", annotator="ann", comment="x", edited="cc").line(),
        vote(draft("Skipped?"), choice="skip").line(),
    ]
    found = summary(votes)
    assert (found["votes"], found["preferences"], found["edited"], found["commented"]) == (4, 3, 1, 1)
    assert found["annotators"] == {"ann": 3, "bob": 1}
    assert found["choices"]["skip"] == 1
    assert found["judged_by_several"] == 1
    assert found["agreement"] == [{"annotators": ["ann", "bob"], "pairs": 1, "observed": 0.0, "cohen_kappa": 0.0}]
    assert found["instant"] == [votes[1]["id"]]
    assert found["contradictory"] == [{"pair": shared.id, "votes": {votes[0]["id"]: "ann", votes[1]["id"]: "bob"}}]


def test_contradictions_are_what_data_drops(tmp_path: Path) -> None:
    store = Store(tmp_path / "prefs.jsonl")
    for question in ("Both ways?", "Edited?", "Agreed?"):
        ann, bob = draft(question, one="a", other="b"), draft(question, one="a", other="b")
        store.add(vote(ann, prefers="a", annotator="ann", edited="a, better" if question == "Edited?" else None))
        store.add(vote(bob, prefers="a" if question == "Agreed?" else "b", annotator="bob"))
    (pairs,) = load_pairs(DataSection(path=str(store.path))).by_source
    kept, dropped = lint(pairs)
    found = summary(store.votes())["contradictory"]
    assert [one["pair"] for one in found] == [draft("Both ways?", one="a", other="b").id]
    assert dropped == {"contradictory": 2, "duplicate": 1}
    assert sorted(pair.chosen for pair in kept) == ["a", "a, better", "b"]


def test_wins_are_counted_where_the_authors_differ() -> None:
    between = draft(one="a", other="b")
    for answered, name in zip(between.answers, ("base", "tuned"), strict=True):
        object.__setattr__(answered, "author", {"name": name})
    votes = [vote(between, prefers="b").line(), vote(between, prefers="b").line(), vote(between, prefers="a").line()]
    votes += [vote(between, choice="both_good").line(), vote(between, choice="skip").line(), vote().line()]
    assert summary(votes)["wins"] == {"tuned": 2, "base": 1, "tie": 1}
