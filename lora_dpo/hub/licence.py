"""Under which licence a model may be published: its base's, which it inherits."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lora_dpo.errors import UserError
from lora_dpo.hub.licences import IDENTIFIERS, TERMS, check_identifier


@dataclass(frozen=True, slots=True)
class Licence:
    """A licence as the Hub's metadata has it.

    Attributes:
        identifier: The Hub's name of it, such as `apache-2.0`; None where it is not known.
        link: Its text.
        notice: What its terms ask of whoever publishes a derived model.
        why: How it was found.
        name: What it is called where the Hub has no name of it, and calls it `other`.
    """

    identifier: str | None
    link: str | None = None
    notice: str | None = None
    why: str = ""
    name: str | None = None

    def remark(self, base: str) -> str:
        """Returns what the user is told of it."""
        if self.identifier is None:
            return f"The licence of {base} is not known here, so the card names none. Name it with --license."
        notice = f" {self.notice}" if self.notice else ""
        return f"Licence: {self.identifier} ({self.why}).{notice}"


def _known(identifier: str, why: str, name: str | None = None, link: str | None = None) -> Licence:
    """Returns a licence with its terms, where they are passed on."""
    text, notice = TERMS.get(identifier, (link, None))
    return Licence(identifier, text, notice, why, name)


_BY_ARCHITECTURE = dict.fromkeys(("gemma", "gemma2", "gemma3", "gemma3_text"), "gemma")
"""Architectures whose every model is under one licence; a Llama architecture is used by others too."""
_BY_NAME = {
    r"google/gemma-\d.*": "gemma",
    **{
        rf"meta-llama/(meta-)?llama-{re.escape(version)}(?!\.\d)\b.*": f"llama{version}"
        for version in ("2", "3", "3.1", "3.2", "3.3", "4")
    },
    r"(HuggingFaceTB/SmolLM2?-|TinyLlama/|mistralai/Mistral-7B|Qwen/Qwen3-|EleutherAI/gpt-j).*": "apache-2.0",
    r"(openai-community/)?gpt2(-medium|-large|-xl)?": "mit",
}
_LINES = re.compile(r"^license(?P<part>_name|_link)?:\s*[\"']?(?P<value>[^\"'\n]+?)[\"']?\s*$", re.MULTILINE)


def licence_of(base: str | None, config: Mapping[str, Any], folder: Path | None, asked: str | None) -> Licence:
    """Finds out a base model's licence.

    Args:
        base: Its Hub id, as far as it is known.
        config: Its configuration.
        folder: Where it is on this machine; None where it is not.
        asked: What the user says; it must not contradict terms that are known.

    Raises:
        UserError: The Hub does not know the licence that the user says, or the base's is another one that is passed on
            to derived models.
    """
    if asked is not None:
        check_identifier(asked)
    found = _by_architecture(config) or _by_name(base) or _by_card(folder)
    if asked is None:
        return found or Licence(None)
    if found is None:
        return _known(asked, "as given")
    if found.identifier == asked:
        return replace(found, why="as given")
    if found.notice is not None:
        raise UserError(
            f"--license {asked}, but the base model is under {found.identifier}.", why=found.notice, fix="Leave it out."
        )
    return _known(asked, f"as given; the base model is under {found.name or found.identifier}")


def _by_architecture(config: Mapping[str, Any]) -> Licence | None:
    kind = config.get("model_type", "")
    found = _BY_ARCHITECTURE.get(kind) if isinstance(kind, str) else None
    return None if found is None else _known(found, f"every {kind} model's")


def _by_name(base: str | None) -> Licence | None:
    for pattern, identifier in _BY_NAME.items():
        if base is not None and re.fullmatch(pattern, base, re.IGNORECASE):
            return _known(identifier, f"that of {base}")
    return None


def _by_card(folder: Path | None) -> Licence | None:
    """Reads the metadata of the base's own card, where there is one."""
    card = None if folder is None else folder / "README.md"
    if card is None or not card.is_file():
        return None
    block = re.match(r"\s*---\n(.*?)\n---", card.read_text(encoding="utf-8", errors="replace"), re.DOTALL)
    named = {match["part"]: match["value"] for match in _LINES.finditer(block[1] if block else "")}
    if named.get(None) not in IDENTIFIERS:
        return None
    return _known(named[None], "its card says so", named.get("_name"), named.get("_link"))


def config_of(folder: Path | None) -> dict[str, Any]:
    """Returns a model's configuration; empty where there is none."""
    file = None if folder is None else folder / "config.json"
    try:
        return dict(json.loads(file.read_text(encoding="utf-8"))) if file is not None else {}
    except (OSError, ValueError):
        return {}
