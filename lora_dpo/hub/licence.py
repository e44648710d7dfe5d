"""Under which licence a model may be published: its base's, which it inherits."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lora_dpo.errors import UserError


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


_GEMMA = Licence(
    "gemma",
    "https://ai.google.dev/gemma/terms",
    "Gemma's terms hold for derived models: pass them on, with the use restrictions, and say that it was changed.",
)
_LLAMA_NOTICE = (
    "Llama's licence holds for derived models: pass it on, show 'Built with Llama', and begin the model's name with "
    "'Llama'."
)
_BY_ARCHITECTURE = {"gemma": _GEMMA, "gemma2": _GEMMA, "gemma3": _GEMMA, "gemma3_text": _GEMMA}
"""Architectures whose every model is under one licence; a Llama architecture is used by others too."""
_BY_NAME: tuple[tuple[str, Licence], ...] = (
    (r"google/gemma-\d", _GEMMA),
    *(
        (
            rf"meta-llama/(meta-)?llama-{version}\b(?!\.\d)",
            Licence(
                f"llama{version}", f"https://www.llama.com/llama{version.replace('.', '_')}/license", _LLAMA_NOTICE
            ),
        )
        for version in ("2", "3", "3.1", "3.2", "3.3")
    ),
    (r"HuggingFaceTB/SmolLM2?-|TinyLlama/|mistralai/Mistral-7B|Qwen/Qwen3-|EleutherAI/gpt-j", Licence("apache-2.0")),
    (r"(openai-community/)?gpt2", Licence("mit")),
)
_LINES = re.compile(r"^license(?P<part>_name|_link)?:\s*[\"']?(?P<value>[^\"'\n]+?)[\"']?\s*$", re.MULTILINE)


def licence_of(base: str | None, config: Mapping[str, Any], folder: Path | None, asked: str | None) -> Licence:
    """Finds out a base model's licence.

    Args:
        base: Its Hub id, as far as it is known.
        config: Its configuration.
        folder: Where it is on this machine; None where it is not.
        asked: What the user says; it must not contradict terms that are known.

    Raises:
        UserError: The user says another licence than one that is passed on to derived models.
    """
    found = _by_architecture(config) or _by_name(base) or _by_card(folder)
    if asked is None:
        return found or Licence(None)
    if found is not None and found.notice is not None and found.identifier != asked:
        raise UserError(
            f"--license {asked}, but the base model is under {found.identifier}.", why=found.notice, fix="Leave it out."
        )
    same = found is not None and found.identifier == asked
    return Licence(asked, found.link if same and found else None, found.notice if same and found else None, "as given")


def _by_architecture(config: Mapping[str, Any]) -> Licence | None:
    kind = config.get("model_type", "")
    found = _BY_ARCHITECTURE.get(kind)
    return None if found is None else Licence(found.identifier, found.link, found.notice, f"every {kind} model's")


def _by_name(base: str | None) -> Licence | None:
    for pattern, found in _BY_NAME:
        if base is not None and re.match(pattern, base, re.IGNORECASE):
            return Licence(found.identifier, found.link, found.notice, f"that of {base}")
    return None


def _by_card(folder: Path | None) -> Licence | None:
    """Reads the metadata of the base's own card, where there is one."""
    card = None if folder is None else folder / "README.md"
    if card is None or not card.is_file():
        return None
    block = re.match(r"\s*---\n(.*?)\n---", card.read_text(encoding="utf-8", errors="replace"), re.DOTALL)
    named = {match["part"]: match["value"] for match in _LINES.finditer(block[1] if block else "")}
    if None not in named:
        return None
    return Licence(named[None], named.get("_link"), None, "its card says so", named.get("_name"))


def config_of(folder: Path | None) -> dict[str, Any]:
    """Returns a model's configuration; empty where there is none."""
    file = None if folder is None else folder / "config.json"
    try:
        return dict(json.loads(file.read_text(encoding="utf-8"))) if file is not None else {}
    except (OSError, ValueError):
        return {}
