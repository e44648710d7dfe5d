from __future__ import annotations

from pathlib import Path

from lora_dpo.evaluation.outcomes import Outcome, examples, read_outcomes, write_outcomes

TEXTS = {"best": "b", "favourite before": "f", "favourite after": "g", "chosen": "c", "rejected": "r"}


def outcome(name: str, metric: str, before: float, after: float) -> Outcome:
    return Outcome(name, f"{name}?", "", {metric: before}, {metric: after}, TEXTS)


def prompts(found: list) -> list[str]:
    return [example["prompt"] for example in found]


def test_examples_are_the_largest_changes_both_ways() -> None:
    gains = {"a": 0.1, "b": -0.2, "c": 0.5, "d": 0.0, "e": -0.1, "f": 0.3, "g": 0.2}
    found = examples([outcome(name, "mc2", 0.25, 0.25 + gain) for name, gain in gains.items()])
    assert prompts(found["improved"]) == ["c?", "f?", "g?"]
    assert prompts(found["worse"]) == ["b?", "e?"]
    assert found["improved"][0]["texts"] == {"best": "b", "favourite before": "f", "favourite after": "g"}
    assert (found["worse"][0]["before"], found["worse"][0]["after"]) == (0.25, 0.25 - 0.2)


def test_pairs_are_compared_by_their_margin_where_no_question_lists_its_answers() -> None:
    found = examples([outcome("a", "margin", 1.0, -2.0), outcome("b", "tokens", 1.0, 5.0)])
    assert (found["improved"], prompts(found["worse"])) == ([], ["a?"])
    assert found["worse"][0]["texts"] == {"chosen": "c", "rejected": "r"}


def test_nothing_to_choose_examples_from() -> None:
    assert examples([]) == {"improved": [], "worse": []}


def test_written_and_read(tmp_path: Path) -> None:
    file = tmp_path / "evaluation" / "questions.jsonl"
    assert read_outcomes(file) == []
    outcomes = [outcome("ä\u2028", "mc2", 0.1, 0.7), outcome("b", "margin", 1.0, -2.0)]
    write_outcomes(file, outcomes)
    assert read_outcomes(file) == outcomes
