"""Which files of a folder travel, and whether they are all there."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from lora_dpo.errors import UserError
from lora_dpo.hub.package import MANIFEST, File, Kind
from lora_dpo.model.hashes import hash_over
from lora_dpo.model.record import RECORD

_TRAINING_STATE = (
    *("optimizer*", "scheduler*", "rng_state*", "trainer_state.json", "training_args.bin", "continuity_*", "*.pt"),
    *("*.pth", "*.ckpt", "*.distcp", "global_step*", "zero_to_fp32.py", "latest", "events.out.tfevents*"),
)
_LEFTOVERS = (".*", "__pycache__", "*.pyc", "*.partial", "*.incomplete", "*.lock", "*~", "wandb", "runs")
_WRITTEN_ANEW = {"README.md", MANIFEST}
"""The card takes the place of what PEFT writes by itself; a checkpoint's manifest lists what does not travel."""
_WEIGHTS: dict[Kind, str] = {"adapter": "adapter_model.safetensors", "model": "model.safetensors"}
_CONFIG: dict[Kind, str] = {"adapter": "adapter_config.json", "model": "config.json"}
_INDEX = "model.safetensors.index.json"
_PICKLED = (".bin", ".pkl", ".pickle")


def select(folder: Path, kind: Kind) -> tuple[dict[str, Path], list[str]]:
    """Divides a folder into what travels and what does not.

    Args:
        folder: Folder of an adapter or a model.
        kind: Which of them it is.

    Returns:
        The files that travel, by their place in the repository, and the names of what is left out: states of
        optimizers, caches, hidden files.
    """
    travelling, left_out = {}, []
    for entry in sorted(folder.iterdir()):
        if any(entry.match(pattern) for pattern in (*_TRAINING_STATE, *_LEFTOVERS)):
            left_out.append(entry.name)
        elif entry.is_dir():
            inside, not_inside = select(entry, kind)
            travelling |= {f"{entry.name}/{path}": file for path, file in inside.items()}
            left_out += [f"{entry.name}/{path}" for path in not_inside]
        elif entry.name not in _WRITTEN_ANEW:
            travelling[entry.name] = entry
    return travelling, left_out


def check_complete(folder: Path, kind: Kind, files: Mapping[str, Path], record: Mapping[str, Any] | None) -> None:
    """Checks that an adapter or a model is whole, and the one that was saved.

    Args:
        folder: Its folder.
        kind: What it is.
        files: The files that travel.
        record: What it says of itself; None where it was made elsewhere.

    Raises:
        UserError: A file is missing, damaged, or not what its record, manifest or merge report says.
    """
    _read_json(folder / _CONFIG[kind])
    weights = _weights(folder, kind)
    if pickled := sorted(path for path in files if path.endswith(_PICKLED)):
        raise UserError(
            f"{pickled[0]} in {folder} is a pickle, which can run code wherever it is loaded.",
            fix="Save the weights as safetensors, and remove it.",
        )
    hashes = {name: File.at(name, folder / name).sha256 for name in weights}
    if record is not None and record.get("weights_sha256") not in (None, hash_over(hashes)):
        raise UserError(
            f"The weights in {folder} are not those that were saved there.",
            why=f"Their hash is {hash_over(hashes)[:12]}; {RECORD} has {record['weights_sha256'][:12]}.",
            fix=f"Copy them again, or remove {RECORD} if you have changed them on purpose.",
        )
    if record is not None and record.get("stage") == "merge":
        _check_merge_report(folder, hashes)
    if (folder / MANIFEST).is_file():
        _check_manifest(folder, files)


def _weights(folder: Path, kind: Kind) -> list[str]:
    """Returns the files with the weights, once each is known to be whole."""
    names = {_WEIGHTS[kind]: None}
    if kind == "model" and (folder / _INDEX).is_file():
        names = _read_json(folder / _INDEX)["weight_map"]
        names = {file: [key for key in names if names[key] == file] for file in names.values()}
    for name, tensors in names.items():
        if not (folder / name).is_file():
            raise UserError(
                f"{folder} has no {name}, so the {kind} is not complete.",
                fix="Copy it again from where it was made; weights have to be safetensors.",
            )
        found = _tensors(folder / name)
        if missing := set(tensors or ()) - found:
            raise UserError(f"{folder / name} has no tensor {min(missing)}, which {_INDEX} says.", fix="Copy it again.")
    return sorted(names)


def _tensors(file: Path) -> set[str]:
    try:
        with safe_open(file, framework="numpy") as opened:
            return set(opened.keys())
    except (SafetensorError, OSError) as error:
        raise UserError(f"{file} cannot be read: {error}", fix="Copy it again from where it was made.") from None


def _check_merge_report(folder: Path, hashes: Mapping[str, str]) -> None:
    report = _read_json(folder / "merge_report.json")
    if report.get("files") != hashes:
        raise UserError(
            f"The weights in {folder} are not those that merge_report.json vouches for.",
            why="It says which files were compared with what was trained.",
            fix="Merge again with `lora-dpo merge`.",
        )


def _check_manifest(folder: Path, files: Mapping[str, Path]) -> None:
    """Checks a checkpoint's files, or those of a repository that was fetched, against their manifest."""
    known = _read_json(folder / MANIFEST).get("files", {})
    for path, file in files.items():
        entry = known.get(path)
        if isinstance(entry, dict) and entry.get("sha256") not in (None, File.at(path, file).sha256):
            raise UserError(
                f"{file} is not what {MANIFEST} says.", fix=f"Copy it again, or remove {folder / MANIFEST}."
            )


def _read_json(file: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(file.read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise UserError(f"{file} is missing.", fix="Copy it again from where it was made.") from None
    except (ValueError, TypeError, OSError) as error:
        raise UserError(f"{file} cannot be read: {error}", fix="Copy it again from where it was made.") from None
