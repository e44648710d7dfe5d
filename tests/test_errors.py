from __future__ import annotations

import pytest

from lora_dpo.errors import UserError, did_you_mean, nearest


@pytest.mark.parametrize(
    ("parts", "text"),
    [
        ({}, "what"),
        ({"why": "why", "fix": "fix", "where": "a.yaml:3"}, "a.yaml:3: what\nwhy\nfix"),
        ({"fix": "fix"}, "what\nfix"),
        ({"where": "x.csv, line 4"}, "x.csv, line 4: what"),
    ],
)
def test_the_message_says_what_why_and_what_to_do(parts: dict[str, str], text: str) -> None:
    error = UserError("what", **parts)
    assert str(error) == text
    assert error.args == (text,)
    assert error.exit_code == 2


@pytest.mark.parametrize(
    ("name", "known", "found"),
    [
        ("bta", ["beta", "alpha"], "beta"),
        ("BETA", ["alpha", "beta"], "beta"),
        ("lm_Head", ["LM_head"], "LM_head"),
        ("zzz", ["alpha", "beta"], None),
        ("alpha", [], None),
        ("", ["alpha"], None),
    ],
)
def test_nearest(name: str, known: list[str], found: str | None) -> None:
    assert nearest(name, known) == found
    assert nearest(name, iter(known)) == found


def test_did_you_mean_names_the_nearest_else_all() -> None:
    assert did_you_mean("bta", ["beta", "alpha"]) == "Did you mean 'beta'?"
    assert did_you_mean("zzz", ["beta", "alpha"]) == "Known: beta, alpha."
    assert did_you_mean("zzz", iter(["beta"])) == "Known: beta."
    assert did_you_mean("zzz", []) == ""
