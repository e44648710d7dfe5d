from __future__ import annotations

import pytest

from lora_dpo.evaluation.tables import verdict
from tests.evaluation.test_report import PREFERENCE, comparison


@pytest.mark.parametrize(
    ("ci95", "begins"), [((0.01, 0.6), "Better: MC1 25.0% -> 50.0%"), ((-0.6, -0.01), "Worse: MC1"), ((0.0, 0.6), "No")]
)
def test_the_verdict_is_what_the_interval_says(ci95: tuple[float, float], begins: str) -> None:
    found = {"multiple_choice": {"mc1": comparison(0.25, 0.5, ci95)}, "preference": PREFERENCE}
    assert verdict(found).startswith(begins)


def test_without_multiple_choice_the_preference_decides() -> None:
    assert verdict({"multiple_choice": None, "preference": PREFERENCE}).startswith("Better: preference accuracy 50.0%")
