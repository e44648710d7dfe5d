"""Which files of a folder travel, and whether they are all there."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path, PurePath
from typing import Any

from safetensors import SafetensorError, safe_open

from lora_dpo.errors import UserError
from lora_dpo.hub.documents import read_json
from lora_dpo.hub.package import CARD, MANIFEST, File, Kind
from lora_dpo.model.hashes import hash_over
from lora_dpo.model.record import RECORD

_TRAINING_STATE = (
    *("optimizer*", "scheduler*", "rng_state*", "trainer_state.json", "training_args.bin", "continuity_*", "*.pt"),
    *("*.pth", "*.ckpt", "*.distcp", "global_step*", "zero_to_fp32.py", "latest", "events.out.tfevents*"),
)
_LEFTOVERS = (".*", "__pycache__", "*.pyc", "*.partial", "*.incomplete", "*.lock", "*~", "wandb", "runs")
_DATA = ("*.jsonl", "*.csv", "*.tsv", "*.parquet", "*.arrow")
_FOLDERS_BESIDE = ("data", "checkpoint-*", "checkpoints", "step-*")
"""What trainers put below the folder of a model; what these hold is never published with it."""
_WEIGHTS: dict[Kind, str] = {"adapter": "adapter_model.safetensors", "model": "model.safetensors"}
_CONFIG: dict[Kind, str] = {"adapter": "adapter_config.json", "model": "config.json"}
_INDEX = "model.safetensors.index.json"
MERGE_REPORT = "merge_report.json"
_PICKLED = (".bin", ".pkl", ".pickle")
_ANOTHER_MODEL = (*_CONFIG.values(), "*.safetensors", "*.bin", "*.gguf")
_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "spiece.model", "vocab.json", "vocab.txt", "*.tiktoken")
"""Files of which a tokenizer has at least one."""


def select(folder: Path, kind: Kind) -> tuple[dict[str, Path], list[str]]:
    """Divides a folder into what travels and what does not.

    Args:
        folder: Folder of an adapter or a model.
        kind: Which of them it is.

    Returns:
        The files that travel, by their place in the repository, and the names of what is left out: states of
        optimizers, caches, hidden files, data, other models, and a README.md, whose place the card takes.

    Raises:
        UserError: Something is no file that could be sent, such as a link to nothing.
    """
    return _divide(folder, kind, (folder.resolve(),))


def _divide(folder: Path, kind: Kind, above: tuple[Path, ...]) -> tuple[dict[str, Path], list[str]]:
    """Divides a folder; `above` are those that it is in, and itself: the first is that of the adapter or model."""
    travelling, left_out, top = {}, [], len(above) == 1
    weights = _weight_files(folder, kind) if top else {}
    for entry in sorted(folder.iterdir()):
        if _is_left_out(entry, top=top) or (top and _is_of_other_weights(entry.name, weights, kind)):
            left_out.append(entry.name)
        elif entry.is_dir():
            if entry.resolve() in above:
                raise UserError(f"{entry} is a link to a folder that it is in itself.", fix="Remove the link.")
            inside, not_inside = _divide(entry, kind, (*above, entry.resolve()))
            travelling |= {f"{entry.name}/{path}": file for path, file in inside.items()}
            left_out += [f"{entry.name}/{path}" for path in not_inside]
        elif not entry.is_file():
            what = "a link to nothing" if entry.is_symlink() else "no regular file"
            raise UserError(f"{entry} is {what}, so it cannot be published.", fix="Remove it, or put the file there.")
        elif not (top and entry.name == MANIFEST):
            travelling[entry.name] = entry
    return travelling, left_out


def _is_left_out(entry: Path, *, top: bool) -> bool:
    if any(entry.match(pattern) for pattern in (*_TRAINING_STATE, *_LEFTOVERS)):
        return True
    if not entry.is_dir():
        return (top and entry.name == CARD) or any(entry.match(pattern) for pattern in _DATA)
    if top and any(entry.match(pattern) for pattern in _FOLDERS_BESIDE):
        return True
    return any(file.match(pattern) for file in entry.iterdir() for pattern in _ANOTHER_MODEL)


def _is_of_other_weights(name: str, weights: Mapping[str, Any], kind: Kind) -> bool:
    """Returns whether a file is of weights that are none of this model's, as an earlier save with other shards."""
    if name.endswith(".index.json"):
        return kind != "model" or name != _INDEX
    # A whole model beside its index is refused later: it is what would be loaded.
    return name.endswith(".safetensors") and name not in {*weights, _WEIGHTS[kind]}


def has_tokenizer(files: Iterable[str]) -> bool:
    """Returns whether a tokenizer is among files.

    Args:
        files: Their places in the repository.
    """
    return any("/" not in path and PurePath(path).match(pattern) for path in files for pattern in _TOKENIZERS)


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
    read_json(folder / _CONFIG[kind])
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


def _weight_files(folder: Path, kind: Kind) -> dict[str, list[str]]:
    """Returns the files with the weights, and the tensors that the index puts into each."""
    if kind != "model" or not (folder / _INDEX).is_file():
        return {_WEIGHTS[kind]: []}
    places = read_json(folder / _INDEX).get("weight_map")
    if not isinstance(places, dict) or not all(isinstance(name, str) for name in places.values()):
        raise UserError(
            f"{folder / _INDEX} does not say which tensor is in which file.",
            fix="Copy it again from where it was made.",
        )
    return {name: [tensor for tensor in places if places[tensor] == name] for name in places.values()}


def _weights(folder: Path, kind: Kind) -> list[str]:
    """Returns the files with the weights, once each is known to be whole."""
    files = _weight_files(folder, kind)
    if _WEIGHTS[kind] not in files and (folder / _WEIGHTS[kind]).is_file():
        raise UserError(
            f"{folder} holds two models: {_WEIGHTS[kind]}, and the files that {_INDEX} names.",
            why=f"Whoever loads it gets {_WEIGHTS[kind]}, whichever was meant.",
            fix="Remove the one that is left from an earlier save.",
        )
    for name, tensors in files.items():
        if not (folder / name).is_file():
            raise UserError(
                f"{folder} has no {name}, so the {kind} is not complete.",
                fix="Copy it again from where it was made; weights have to be safetensors.",
            )
        if missing := set(tensors) - _tensors(folder / name):
            raise UserError(f"{folder / name} has no tensor {min(missing)}, which {_INDEX} says.", fix="Copy it again.")
    return sorted(files)


def _tensors(file: Path) -> set[str]:
    try:
        with safe_open(file, framework="numpy") as opened:
            return set(opened.keys())
    except (SafetensorError, OSError) as error:
        raise UserError(f"{file} cannot be read: {error}", fix="Copy it again from where it was made.") from None


def _check_merge_report(folder: Path, hashes: Mapping[str, str]) -> None:
    report = read_json(folder / MERGE_REPORT)
    if report.get("files") != hashes:
        raise UserError(
            f"The weights in {folder} are not those that {MERGE_REPORT} vouches for.",
            why="It says which files were compared with what was trained.",
            fix="Merge again with `lora-dpo merge`.",
        )


def _check_manifest(folder: Path, files: Mapping[str, Path]) -> None:
    """Checks a checkpoint's files, or those of a repository that was fetched, against their manifest."""
    known = read_json(folder / MANIFEST).get("files")
    fix = f"Copy it again, or remove {folder / MANIFEST}."
    if not isinstance(known, dict):
        raise UserError(f"{folder / MANIFEST} does not list files.", fix=fix)
    if gone := sorted(path for path in known if path != CARD and not (folder / path).exists()):
        raise UserError(f"{folder / gone[0]} is missing, which {MANIFEST} lists.", fix=fix)
    for path, file in files.items():
        entry = known.get(path)
        if isinstance(entry, dict) and entry.get("sha256") not in (None, File.at(path, file).sha256):
            raise UserError(f"{file} is not what {MANIFEST} says.", fix=fix)
