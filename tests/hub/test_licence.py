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
        ("gpt2", "gpt2", "mit"),
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
