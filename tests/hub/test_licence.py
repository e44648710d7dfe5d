from __future__ import annotations

from pathlib import Path

import pytest

from lora_dpo.errors import UserError
from lora_dpo.hub.licence import licence_of


@pytest.mark.parametrize(
    ("base", "kind", "expected"),
    [
        ("google/gemma-2-9b-it", "", "gemma"),
        ("somebody/renamed", "gemma2", "gemma"),
        ("meta-llama/Llama-3.1-8B-Instruct", "llama", "llama3.1"),
        ("meta-llama/Meta-Llama-3-8B", "llama", "llama3"),
        ("meta-llama/Llama-3.2-1B", "llama", "llama3.2"),
        ("HuggingFaceTB/SmolLM2-135M-Instruct", "llama", "apache-2.0"),
        ("meta-llama/Llama-2-7b-hf", "llama", "llama2"),
        ("meta-llama/Llama-4-Scout-17B-16E", "llama4", "llama4"),
        ("meta-llama/Llama-Guard-3-8B", "llama", None),
        ("gpt2", "gpt2", "mit"),
        ("openai-community/gpt2-xl", "gpt2", "mit"),
        ("gpt2-secret-nc/foo", "gpt2", None),
        ("gpt2-other", "gpt2", None),
        ("not/google/gemma-2-2b", "", None),
        ("somebody/else", "llama", None),
        (None, "llama", None),
    ],
)
def test_known_bases(base: str | None, kind: str, expected: str | None) -> None:
    assert licence_of(base, {"model_type": kind}, None, None).identifier == expected


def test_gated_bases_say_what_their_terms_ask() -> None:
    found = licence_of("google/gemma-2-9b-it", {}, None, None)
    assert found.link == "https://ai.google.dev/gemma/terms"
    assert "use restrictions" in found.remark("google/gemma-2-9b-it")
    assert "Built with Llama" in licence_of("meta-llama/Llama-3.1-8B", {}, None, None).remark("x")


def test_the_terms_of_the_base_cannot_be_exchanged() -> None:
    with pytest.raises(UserError, match="--license mit, but the base model is under gemma"):
        licence_of("google/gemma-2-2b", {}, None, "mit")
    assert licence_of("google/gemma-2-2b", {}, None, "gemma").link == "https://ai.google.dev/gemma/terms"
    assert licence_of("gpt2", {}, None, "apache-2.0").identifier == "apache-2.0"


def test_the_card_of_the_base_says_it(tmp_path: Path) -> None:
    card = "---\nlicense: other\nlicense_name: 'mine'\nlicense_link: https://example.org/l\n---\nlicense: no\n"
    (tmp_path / "README.md").write_text(card)
    found = licence_of("x/y", {}, tmp_path, None)
    assert (found.identifier, found.name, found.link) == ("other", "mine", "https://example.org/l")


def test_an_unknown_licence_is_said() -> None:
    assert "not known here, so the card names none" in licence_of("x/y", {}, None, None).remark("x/y")


@pytest.mark.parametrize("kind", ["llama2", "llama3.1", "gemma"])
def test_terms_that_the_card_of_the_base_names_hold_as_well(tmp_path: Path, kind: str) -> None:
    (tmp_path / "README.md").write_text(f"---\nlicense: {kind}\n---\n")
    with pytest.raises(UserError, match=f"--license mit, but the base model is under {kind}"):
        licence_of(None, {}, tmp_path, "mit")
    found = licence_of(None, {}, tmp_path, None)
    assert (found.identifier, found.notice is not None, found.link is not None) == (kind, True, True)
    assert licence_of("x/y", {}, None, kind).notice == found.notice


def test_another_licence_than_the_bases_is_said(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("---\nlicense: cc-by-nc-4.0\n---\n")
    said = licence_of("x/y", {}, tmp_path, "mit").remark("x/y")
    assert said == "Licence: mit (as given; the base model is under cc-by-nc-4.0)."


@pytest.mark.parametrize(
    ("word", "fix"), [("apache2", "'apache-2.0'"), ("mmit", "'mit'"), ("mit: [x", "'mit'"), ("MIT", "'mit'"), ("", "")]
)
def test_licences_are_called_as_the_hub_calls_them(word: str, fix: str) -> None:
    with pytest.raises(UserError, match="is no licence that the Hub knows") as refused:
        licence_of("x/y", {}, None, word)
    assert fix in refused.value.fix
    assert licence_of("x/y", {}, None, "other").identifier == "other"
