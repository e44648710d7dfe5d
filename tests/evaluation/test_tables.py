from __future__ import annotations

import pytest

from lora_dpo.evaluation.tables import fold_rows, verdict
from tests.evaluation.test_report import PREFERENCE, comparison


@pytest.mark.parametrize(
    ("ci95", "begins"), [((0.01, 0.6), "Better: MC1 25.0% -> 50.0%"), ((-0.6, -0.01), "Worse: MC1"), ((0.0, 0.6), "No")]
)
def test_the_verdict_is_what_the_interval_says(ci95: tuple[float, float], begins: str) -> None:
    found = {"multiple_choice": {"mc1": comparison(0.25, 0.5, ci95)}, "preference": PREFERENCE}
    assert verdict(found).startswith(begins)


def test_without_multiple_choice_the_preference_decides() -> None:
    assert verdict({"multiple_choice": None, "preference": PREFERENCE}).startswith("Better: preference accuracy 50.0%")


def test_folds_side_by_side() -> None:
    changes = [{"mc1": 0.1234, "margin": -0.5}, {"mc1": -0.01, "margin": 2.25}]
    folds = [
        {"run": f"fold-{n}", "questions": 7 + n, "difference": change, "perplexity_change": 0.031 * n}
        for n, change in enumerate(changes, start=1)
    ]
    assert fold_rows({"folds": folds}) == [
        ["change in", "fold-1", "fold-2"],
        ["questions", "8", "9"],
        ["MC1", "+12.3", "-1.0"],
        ["margin, nats", "-0.50", "+2.25"],
        ["perplexity", "+3.1 %", "+6.2 %"],
    ]
    assert fold_rows({}) == []
