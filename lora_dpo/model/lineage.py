"""Where weights come from: what is written down of a base and of adapters, and whether it is still so."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_dpo.console import note, tracked
from lora_dpo.errors import UserError
from lora_dpo.model.adapter import adapter_folder
from lora_dpo.model.base import resolve
from lora_dpo.model.hashes import content_hash, file_hashes, hash_over, hub_hash, weights_hash
from lora_dpo.model.record import read_record
from lora_dpo.recipe.schema import ModelSection

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_SHOWN = 12
"""Characters of a hash that a message shows."""
_PROBE = 'Why is the sky blue?\n\n  It\'s 1,234 km away – naïvely put: "far".\tSo?'


def identify(model: ModelSection, tokenizer: PreTrainedTokenizerBase, commit: str | None = None) -> dict[str, Any]:
    """Returns what a base model is known by.

    Args:
        model: The model.
        tokenizer: Its tokenizer.
        commit: The Hub's commit, where it is known.

    Returns:
        Name, revision and hashes, and the model's own record if it has one: a merged model says what is in it.
    """
    place = resolve(model)
    files = file_hashes(place, model.revision)
    return {
        "name": model.name,
        "revision": commit or model.revision,
        "weights_sha256": None if files is None else hash_over(files),
        "files": files,
        "tokenizer_sha256": tokenizer_hash(tokenizer),
        "provenance": read_record(place),
    }


def identify_parent(name: str) -> dict[str, Any]:
    """Returns what an adapter that a training goes on from is known by.

    Args:
        name: Adapter folder, run folder or Hub id.
    """
    place = str(adapter_folder(name) or name)
    return {"name": name, "weights_sha256": weights_hash(place, None), "provenance": read_record(place)}


def tokenizer_hash(tokenizer: PreTrainedTokenizerBase) -> str:
    """Returns a hash of how text becomes numbers: all tokens with their numbers, and how a sentence is cut.

    Templates and padding do not count, since they change no token's meaning.
    """
    parts = [sorted(tokenizer.get_vocab().items()), tokenizer(_PROBE, add_special_tokens=False)["input_ids"]]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def check_lineage(place: str, base: Mapping[str, Any], *, name: str | None = None) -> dict[str, Any] | None:
    """Checks that what was trained is whole, and that what it was made of is what is here.

    Args:
        place: Adapter folder, run folder, model folder or Hub id.
        base: What `identify` returns of the base that it is to be put upon or compared with.
        name: What the user calls it, if not by its place.

    Returns:
        Its record; None where it has none, so that nothing could be checked.

    Raises:
        UserError: It has changed since it was saved, is of another base or reads other tokens, or an adapter that it
            goes on from has changed; the message says which hash differs.
    """
    name, place = name or place, str(adapter_folder(place) or place)
    record = read_record(place)
    if record is not None:
        check_whole(name, place, record)
        check_base(name, record, base)
        check_parents(name, record)
    return record


def check_whole(name: str, place: str, record: Mapping[str, Any]) -> None:
    """Refuses weights that are not those that were saved.

    Args:
        name: What the user calls them.
        place: Folder or Hub id that they are in.
        record: The record beside them.

    Raises:
        UserError: Their hash is another one.
    """
    known, found = record.get("weights_sha256"), weights_hash(place, None)
    if _differ(known, found):
        raise UserError(
            f"The weights in {name} are not those that were saved there.",
            why=f"Their hash is {_short(found)}; provenance.json has {_short(known)}.",
            fix="Copy them again, or remove provenance.json if you have changed them on purpose.",
        )


def check_files(name: str, files: Sequence[Path]) -> None:
    """Refuses files of the Hub's cache that are not what their names say.

    Args:
        name: What the user calls the model.
        files: Its files, which are read.

    Raises:
        UserError: One is damaged.
    """
    for file in tracked(files, "checking the model's files"):
        known = hub_hash(file)
        if known is not None and content_hash(file) != known:
            raise UserError(
                f"{file.name} of {name} is damaged.",
                why=f"Its hash is {_short(content_hash(file))}; the Hub says {_short(known)}.",
                fix=f"Remove {file.resolve()}; it is then fetched again.",
            )


def check_base(name: str, record: Mapping[str, Any], base: Mapping[str, Any]) -> None:
    """Refuses a base that is not the one that was trained upon.

    Args:
        name: What the user calls what was trained.
        record: Its record.
        base: What `identify` returns.

    Raises:
        UserError: Weights or tokenizer have another hash.
    """
    known = record["model"]
    if known["weights_sha256"] is None or base["weights_sha256"] is None:
        note(f"{name}: its base has no files that could be compared.")
    if _differ(known["weights_sha256"], base["weights_sha256"]):
        raise UserError(
            f"{base['name']} is another model than the one that {name} was trained on.",
            why=f"The weights' hash is {_short(base['weights_sha256'])}; it was {_short(known['weights_sha256'])}."
            + _which_files(known.get("files"), base.get("files")),
            fix="Put the old one back, or name it; an adapter on another base is another model.",
        )
    if _differ(known.get("tokenizer_sha256"), base.get("tokenizer_sha256")):
        raise UserError(
            f"The tokenizer of {base['name']} is not the one that {name} was trained with.",
            why=f"Its hash is {_short(base['tokenizer_sha256'])}; it was {_short(known['tokenizer_sha256'])}. The same "
            "text would be other tokens.",
            fix="Put the tokenizer's files back as they were.",
        )


def check_parents(name: str, record: Mapping[str, Any]) -> None:
    """Refuses what goes on from an adapter that is no longer the same; one that is not there is not compared.

    Args:
        name: What the user calls what was trained.
        record: Its record.

    Raises:
        UserError: An adapter at a parent's place has another hash.
    """
    for parent in record.get("parents", []):
        found = weights_hash(str(adapter_folder(parent["name"]) or parent["name"]), None)
        if _differ(parent["weights_sha256"], found):
            raise UserError(
                f"{parent['name']} is not the adapter that {name} goes on from.",
                why=f"Its weights' hash is {_short(found)}; it was {_short(parent['weights_sha256'])}.",
                fix="Put the old one back, or move the new one: what is not there is not compared.",
            )


def _differ(known: str | None, found: str | None) -> bool:
    return known is not None and found is not None and known != found


def _short(digest: str | None) -> str:
    return "unknown" if digest is None else digest[:_SHOWN]


def _which_files(known: Mapping[str, str] | None, found: Mapping[str, str] | None) -> str:
    """Says which files have changed, where only some have: then a copy is damaged."""
    if not known or not found or known.keys() != found.keys():
        return ""
    changed = [file for file in known if known[file] != found[file]]
    return f" Of {len(known)} files {len(changed)} differ: {', '.join(changed)}." if len(known) > 1 else ""
