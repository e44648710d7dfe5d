"""The ancestry of an adapter or a model, as a tree: `lora-dpo show`. Reads records alone, so it needs no torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.text import Text
from rich.tree import Tree

from lora_dpo.errors import UserError, did_you_mean
from lora_dpo.model.record import RECORD, read_record

_SHOWN = 12
"""Characters of a hash."""
_LIBRARIES = ("torch", "transformers", "peft", "trl")


def find_record(name: str) -> tuple[str, dict[str, Any]]:
    """Finds what a run, an adapter or a model says of itself.

    Args:
        name: Folder or Hub id.

    Returns:
        Where it is, and the record.

    Raises:
        UserError: There is none.
    """
    folder = Path(name).expanduser()
    # A run says less of itself than the adapter or the model in it.
    place = next((place for place in (folder / "adapter", folder / "model") if (place / RECORD).is_file()), folder)
    if place.is_file():
        raise UserError(f"{name} is a file.", fix=f"Give the folder: {folder.parent}.")
    if not place.is_dir() and (folder.is_absolute() or folder.parent.is_dir()):
        beside = [str(entry) for entry in folder.parent.iterdir() if entry.is_dir()] if folder.parent.is_dir() else []
        raise UserError(f"There is nothing at {name}.", fix=did_you_mean(str(folder), beside))
    record = read_record(place if place.is_dir() else name)
    if record is None:
        raise UserError(
            f"{name} does not say where it comes from.",
            why=f"There is no {RECORD} in it: it was made elsewhere, or before its run was through.",
            fix="Give a run, an adapter or a merged model of lora-dpo.",
        )
    return str(place if place.is_dir() else name), record


def ancestry(name: str, record: Mapping[str, Any]) -> Tree:
    """Returns what something was made of, and what that was made of.

    Args:
        name: What it is called.
        record: What it says of itself.
    """
    tree = Tree(_line(name, _kind(record), record.get("weights_sha256")))
    _grow(tree, record)
    return tree


def _grow(tree: Tree, record: Mapping[str, Any]) -> None:
    _add(tree, "base", record["model"])
    for parent in record.get("parents", []):
        _add(tree, "goes on from", parent)
    for adapter in record.get("adapters", []):
        _add(tree, "merged in", adapter)
    for label, text in _facts(record):
        tree.add(Text.assemble((f"{label} ", "dim"), text))


def _add(tree: Tree, label: str, part: Mapping[str, Any]) -> None:
    """Adds a base or an adapter, below which stands what it says of itself."""
    own = part.get("provenance")
    revision = f"revision {part['revision']}" if part.get("revision") else ""
    kind = ", ".join(text for text in (revision, _kind(own) if own else "") if text)
    branch = tree.add(
        Text.assemble((f"{label} ", "dim"), _line(part.get("name", "unknown"), kind, part["weights_sha256"]))
    )
    if own:
        _grow(branch, own)


def _line(name: str, kind: str, digest: str | None) -> Text:
    return Text.assemble(
        (name, "bold"), f"  {kind}" if kind else "", (f"  {digest[:_SHOWN]}" if digest else "", "cyan")
    )


def _kind(record: Mapping[str, Any]) -> str:
    if record.get("stage") == "merge":
        count = len(record.get("adapters", []))
        how = f"{record.get('onto', 'unknown')} base, {record.get('dtype', 'unknown precision')}"
        return f"merge of {count} adapter{'s' * (count != 1)} onto the {how}"
    adapter = record.get("recipe", {}).get("adapter")
    if adapter is None:
        return record.get("stage", "")
    kind = "whole model" if adapter["method"] == "full" else f"{adapter['method']} r {adapter['r']}"
    return f"{record.get('stage', '')}, {kind}{', DoRA' * adapter['dora']}{', rsLoRA' * adapter['rslora']}"


def _facts(record: Mapping[str, Any]) -> list[tuple[str, str]]:
    facts = []
    if quantisation := record.get("quantization"):
        facts.append(("quantised", f"{quantisation['bits']} bits, {quantisation['bnb_4bit_quant_type']}"))
    if data := record.get("data"):
        facts.append(("data", ", ".join(f"{split} {digest[:_SHOWN]}" for split, digest in data.items())))
    packages = record.get("packages", {})
    versions = [f"{name} {packages[name]}" for name in _LIBRARIES if name in packages]
    if code := record.get("code"):
        facts.append(("made by", ", ".join([f"lora-dpo {code['version']}", *versions])))
    return facts
