"""The base model of what is published: what it is called on the Hub, and where it lies here."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import try_to_load_from_cache

from lora_dpo.errors import UserError
from lora_dpo.hub.documents import read_json
from lora_dpo.hub.results import is_hub_name
from lora_dpo.hub.subject import Subject

ADAPTER_CONFIG = "adapter_config.json"


@dataclass(frozen=True, slots=True)
class Base:
    """The base model.

    Attributes:
        name: Its Hub id; whether the Hub has it is asked later. None where it is on this machine only.
        places: The names that it has on this machine.
        folder: Where it lies here, or in the Hub client's cache; None where it does not.
    """

    name: str | None
    places: list[str]
    folder: Path | None


def base_of(subject: Subject, asked: str | None) -> Base:
    """Finds the base model by what the record, the recipe, the adapter's configuration and the user say of it.

    Args:
        subject: What is published.
        asked: What the user says, a Hub id.

    Raises:
        UserError: What the user says is no name that the Hub could have, or the adapter's configuration is damaged.
    """
    if asked is not None:
        check_hub_name(asked)
    said = list(_said(subject))
    names = list(dict.fromkeys(name for name, _ in said))
    fetched = {name for name, revision in said if revision}
    local = [name for name in names if not is_hub_name(name) or (name not in fetched and _is_here(name))]
    # In order: a merged model's own base comes before that of its last training.
    name = asked or (names[0] if names and names[0] not in local else None)
    folders = [Path(place).expanduser() for place in local if _is_here(place)]
    return Base(name, local, next(iter(folders), None) or _cached(name))


def check_hub_name(name: str) -> None:
    """Checks that the Hub could have a model of this name.

    Args:
        name: What the user says.

    Raises:
        UserError: It could not.
    """
    if not is_hub_name(name):
        raise UserError(
            f"--base-model {name!r} is no name that the Hub could have.",
            fix="It (or hub.base_model) is user/name, as in the address of the model's page.",
        )


def _said(subject: Subject) -> Iterator[tuple[str, str | None]]:
    """Yields what is said of the base: name, and revision, which only a model from the Hub has."""
    known = (subject.record or {}).get("model", {})
    yield from _named(known.get("name"), known.get("revision"))
    if subject.recipe is not None:
        yield from _named(subject.recipe.model.name, subject.recipe.model.revision)
    if subject.kind == "adapter":
        config = read_json(subject.folder / ADAPTER_CONFIG)
        yield from _named(config.get("base_model_name_or_path"), config.get("revision"))


def _named(name: Any, revision: Any) -> Iterator[tuple[str, str | None]]:
    if isinstance(name, str) and name:
        yield name, revision


def _is_here(name: str) -> bool:
    """Returns whether a name stands for a model's folder, seen from the working directory."""
    return (Path(name).expanduser() / "config.json").is_file()


def _cached(name: str | None) -> Path | None:
    found = try_to_load_from_cache(name, "config.json") if name else None
    return Path(found).parent if isinstance(found, str) else None
