"""What must not be published: tokens, keys, and paths that say where somebody works."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from lora_dpo.errors import UserError
from lora_dpo.hub.package import File

_SECRETS = {
    "a Hugging Face token": re.compile(r"\bhf_[A-Za-z0-9]{30,}\b"),
    "an AWS key": re.compile(r"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b"),
    "a private key": re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----"),
    "an OpenAI or Anthropic key": re.compile(r"\bsk-(?:[a-z]+-)?[A-Za-z0-9_-]{24,}"),
    "a GitHub token": re.compile(r"\b(?:gh[pousr]_[A-Za-z0-9]{36}|github_pat_[A-Za-z0-9_]{40,})\b"),
    "a Slack token": re.compile(r"\bxox[abprs]-[A-Za-z0-9-]{10,}"),
    "a Weights & Biases key": re.compile(r"WANDB_API_KEY\W{1,4}[0-9a-f]{40}\b"),
}
_SOMEBODY_S = re.compile(r"(?<![\w.:/-])/(?:home|Users|root|scratch|gpfs|lustre|nfs)\d*/[\w.-][^\s\"',:)]*")
"""A folder of a person, on most clusters."""
_PLACES = ("HOME", "SCRATCH", "WORK", "TMPDIR", "HF_HOME", "XDG_CACHE_HOME", "LORA_DPO_CACHE")
_QUOTES = ("report.json", "report.md", "README.md", ".jsonl")
"""Files with texts of the data, which may speak of paths that are nobody's."""
_VOCABULARIES = ("tokenizer.json", "vocab.json", "merges.txt", "vocab.txt", "added_tokens.json")
_LARGEST_TEXT = 100_000_000
_WEIGHTS = (".safetensors", ".png")


def check_nothing_private(files: Iterable[File], token: str | None, known: Iterable[str] = ()) -> None:
    """Looks through all text that would be published.

    Args:
        files: What would be published.
        token: The user's own, whatever it looks like.
        known: Paths of this machine that are known to have been used.

    Raises:
        UserError: A secret or a local path was found; file and line are named, and no more of a secret than its
            beginning.
    """
    local = _local_places(known)
    found = [f"{file.path}:{line}: {what}" for file in files for line, what in _found(file, token, local)]
    if found:
        more = f"\nand {len(found) - 5} more" if len(found) > 5 else ""
        raise UserError(
            "There is something in these files that should not be published.",
            why="\n".join(found[:5]) + more,
            fix="Remove it from the files (a token that was written to a file is better revoked), then push again.",
        )


def _found(file: File, token: str | None, local: re.Pattern[str] | None) -> Iterator[tuple[int, str]]:
    text = _text(file)
    if text is None:
        return
    for what, pattern in _SECRETS.items():
        for match in pattern.finditer(text):
            yield _line(text, match.start()), f"{what} ({match[0][:6]}...)"
    if token and token in text:
        yield _line(text, text.index(token)), "your token"
    if file.path.endswith(_VOCABULARIES):
        return
    patterns = [local] if file.path.endswith(_QUOTES) else [local, _SOMEBODY_S]
    seen = set()
    for pattern in filter(None, patterns):
        for match in pattern.finditer(text):
            line = _line(text, match.start())
            if line not in seen:
                seen.add(line)
                yield line, f"a path of this machine ({match[0]})"
    for place in _places_in(text) if file.path.endswith(".json") else ():
        line = _line(text, max(text.find(json.dumps(place, ensure_ascii=False)), 0))
        if line not in seen:
            seen.add(line)
            yield line, f"a path of this machine ({place})"


def _places_in(text: str) -> Iterator[str]:
    """Yields the values of a JSON document that are files or folders here, wherever machines keep theirs."""
    try:
        waiting = [json.loads(text)]
    except (ValueError, RecursionError):
        return
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict | list):
            waiting += value.values() if isinstance(value, dict) else value
        elif isinstance(value, str) and value.startswith("/") and value.count("/") > 1 and _exists(value):
            yield value


def _exists(place: str) -> bool:
    try:
        return Path(place).exists()
    except (OSError, ValueError):  # too long for a path, or with a null byte
        return False


def _local_places(known: Iterable[str]) -> re.Pattern[str] | None:
    """Returns a pattern for the places that belong to this user; None where there are none that could be told."""
    named = {os.environ.get(name, "") for name in _PLACES} | {str(Path.home()), str(Path.cwd()), *known}
    places = sorted({place.rstrip("/") for place in named if Path(place).is_absolute() and place.count("/") > 1})
    return re.compile("|".join(rf"{re.escape(place)}(?![\w.-])[^\s\"',:)]*" for place in places)) if places else None


def _line(text: str, position: int) -> int:
    return text.count("\n", 0, position) + 1


def _text(file: File) -> str | None:
    """Returns the content of a text file; None for another one."""
    if file.path.endswith(_WEIGHTS) or file.size > _LARGEST_TEXT:
        return None
    content = file.read()
    if b"\0" in content:
        return None
    return content.decode("utf-8", errors="replace")
