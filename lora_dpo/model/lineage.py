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
from lora_dpo.model.hashes import config_hash, content_hash, file_hash, file_hashes, hash_over, hub_hash, weights_hash
from lora_dpo.model.location import locate
from lora_dpo.model.record import MANIFEST, RECORD, read_record
from lora_dpo.model.weights import ADAPTER_CONFIG, MODEL_CONFIG, fetched, weight_files
from lora_dpo.recipe.schema import ModelSection

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_SHOWN = 12
"""Characters of a hash that a message shows."""
_PARTS = {"weights_sha256": "weights", "config_sha256": "settings", "tokenizer_sha256": "tokens"}
"""What each of the hashes of something saved is over."""
_PROBE = 'Why is the sky blue?\n\n  It\'s 1,234 km away – naïvely put: "far".\tSo?'


def identify(model: ModelSection, tokenizer: PreTrainedTokenizerBase, commit: str | None = None) -> dict[str, Any]:
    """Returns what a base model is known by; its weights are fetched from the Hub where they are not here.

    Args:
        model: The model.
        tokenizer: Its tokenizer.
        commit: The Hub's commit, where it is known.

    Returns:
        Name, revision and hashes, and the model's own record if it has one: a merged model says what is in it.

    Raises:
        UserError: It cannot be fetched, or a part of it is missing.
    """
    place = resolve(model)
    folder = fetched(place, commit or model.revision)
    files = file_hashes(str(folder), None)
    local, made_here = Path(place).expanduser().is_dir(), locate(model.name).gguf_file is not None
    return {
        "name": model.name,
        "revision": commit or (model.revision if local else folder.name),
        "weights_sha256": None if files is None else hash_over(files),
        "files": files,
        # What stands beside a GGUF file's weights is this Transformers' word, and another one's may be another.
        "config_sha256": None if made_here else config_hash(folder),
        "tokenizer_sha256": tokenizer_hash(tokenizer),
        "provenance": read_record(folder),
    }


def identify_parent(name: str) -> dict[str, Any]:
    """Returns what an adapter that a training goes on from is known by.

    Args:
        name: Adapter folder, run folder or Hub id.
    """
    folder = files_of(name)
    return {"name": name, **own_hashes(folder), "provenance": read_record(folder)}


def own_hashes(folder: Path) -> dict[str, str | None]:
    """Returns what an adapter or a model says of its own files, so that it can be told whether they have changed.

    Args:
        folder: Its folder.
    """
    return {"weights_sha256": weights_hash(str(folder), None), "config_sha256": config_hash(folder)}


def files_of(place: str) -> Path:
    """Returns the folder of an adapter or a model, whose files are fetched from the Hub where they are not here.

    Args:
        place: Adapter folder, run folder, or whatever `model.name` may be.

    Raises:
        UserError: It is not there, or cannot be fetched.
    """
    path = Path(place).expanduser()
    folder = adapter_folder(place) or (path if path.is_dir() else None)
    return folder or fetched(resolve(ModelSection(name=place)), None)


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
        Its record; None where it has none, so that its base could not be checked, which is said.

    Raises:
        UserError: It has changed since it was saved, is of another base or reads other tokens, or an adapter that it
            goes on from has changed; the message says which hash differs.
    """
    name, folder = name or place, files_of(place)
    record = read_record(folder)
    check_trained(name, folder, record)
    if record is not None:
        check_base(name, record, base)
    return record


def check_trained(name: str, folder: Path, record: Mapping[str, Any] | None) -> None:
    """Checks all that can be known of an adapter or a model without its base.

    Args:
        name: What the user calls it.
        folder: Where its files are.
        record: The record beside them; None, which is said, where it was made elsewhere.

    Raises:
        UserError: It, or an adapter that it goes on from, has changed.
    """
    check_whole(name, folder, record or {})
    if record is None:
        note(f"{name} has no {RECORD} here, so that its base is taken on trust.")
    else:
        check_parents(name, record)


def check_whole(
    name: str, folder: Path, record: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase | None = None
) -> None:
    """Refuses weights, a configuration or a tokenizer that are not those that were saved.

    Args:
        name: What the user calls the adapter or the model.
        folder: Where its files are.
        record: The record beside them.
        tokenizer: The tokenizer beside them, if that is read.

    Raises:
        UserError: Their hash is another one.
    """
    _check_manifest(name, folder)
    found: dict[str, str | None] = own_hashes(folder)
    if tokenizer is not None:
        found["tokenizer_sha256"] = tokenizer_hash(tokenizer)
    before = _before(record, folder)
    for key, digest in found.items():
        if record.get(key) in (None, digest, before):
            continue
        if digest is None:
            raise UserError(f"There are no {_PARTS[key]} in {name}, as there were once.", fix="Copy them again.")
        raise UserError(
            f"The {_PARTS[key]} in {name} are not those that were saved there.",
            why=f"Their hash is {_short(digest)}; {RECORD} has {_short(record[key])}.",
            fix=f"Copy them again, or remove {RECORD} if you have changed them on purpose.",
        )


def _before(record: Mapping[str, Any], folder: Path) -> str | None:
    """Returns the hash that an older version would have written down: over all that might be weights, loaded or not."""
    if "config_sha256" in record or record.get("weights_sha256") is None:
        return None
    files = (file for pattern in ("*.safetensors", "*.bin") for file in folder.glob(pattern))
    return hash_over({file.name: file_hash(file) for file in files})


def _check_manifest(name: str, folder: Path) -> None:
    """Compares weights and configuration with the manifest beside them: a checkpoint says no hashes of its own."""
    try:
        said = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        entries = {file: entry["sha256"] for file, entry in said["files"].items()}
    except (FileNotFoundError, KeyError, TypeError, AttributeError):  # there is none, or another program's
        return
    except (OSError, ValueError) as error:
        raise UserError(
            f"{folder / MANIFEST} cannot be read: {error}", fix="Copy it again from where it was made."
        ) from None
    for file in (*weight_files(folder), folder / ADAPTER_CONFIG, folder / MODEL_CONFIG):
        if not file.is_file() or file.name not in entries or entries[file.name] == file_hash(file):
            continue
        raise UserError(
            f"{file.name} in {name} is not what was written there.",
            why=f"Its hash is {_short(file_hash(file))}; {MANIFEST} has {_short(entries[file.name])}.",
            fix="Copy it again, or take another checkpoint.",
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
        UserError: Weights, configuration or tokenizer have another hash, or there are no weights to compare.
    """
    known = record["model"]
    if known["weights_sha256"] is None:
        note(f"{name}: its base had no files that could be compared, so that it is taken on trust.")
    elif base["weights_sha256"] is None:
        raise UserError(
            f"{base['name']} has no weights that could be compared with those that {name} was trained on.",
            why=f"Their hash was {_short(known['weights_sha256'])}.",
            fix="Download or save it again; a copy may be incomplete.",
        )
    elif not _same_weights(known, base):
        raise UserError(
            f"{base['name']} is another model than the one that {name} was trained on.",
            why=f"The weights' hash is {_short(base['weights_sha256'])}; it was {_short(known['weights_sha256'])}."
            + _which_files(known.get("files"), base.get("files")),
            fix="Put the old one back, or name it; an adapter on another base is another model."
            + _which_revision(known, base),
        )
    if _differ(known.get("config_sha256"), base.get("config_sha256")):
        raise UserError(
            f"The configuration of {base['name']} is not the one that {name} was trained with.",
            why=f"Its hash is {_short(base['config_sha256'])}; it was {_short(known['config_sha256'])}. The same "
            "weights would compute something else.",
            fix=f"Put {MODEL_CONFIG} back as it was.",
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
        folder, known = adapter_folder(parent["name"]), parent["weights_sha256"]
        found = weights_hash(str(folder or parent["name"]), None)
        if _differ(known, found) and (folder is None or known != _before(parent, folder)):
            raise _other_parent(name, parent["name"], "weights'", found, known)
        config = None if folder is None else config_hash(folder)
        if _differ(parent.get("config_sha256"), config):
            raise _other_parent(name, parent["name"], "configuration's", config, parent["config_sha256"])


def _other_parent(name: str, parent: str, whose: str, found: str | None, known: str | None) -> UserError:
    return UserError(
        f"{parent} is not the adapter that {name} goes on from.",
        why=f"Its {whose} hash is {_short(found)}; it was {_short(known)}.",
        fix="Put the old one back, or move the new one: what is not there is not compared.",
    )


def _differ(known: str | None, found: str | None) -> bool:
    return known is not None and found is not None and known != found


def _short(digest: str | None) -> str:
    return "unknown" if digest is None else digest[:_SHOWN]


def _same_weights(known: Mapping[str, Any], base: Mapping[str, Any]) -> bool:
    """Returns whether a base's weights are those that are known.

    Older versions also hashed what is not loaded, such as `consolidated.safetensors`: that may be there or not.
    """
    if known["weights_sha256"] == base["weights_sha256"]:
        return True
    files, found = known.get("files"), base.get("files")
    if "config_sha256" in known or not files or not found or not found.items() <= files.items():
        return False
    begins = tuple({name.partition(".")[0].partition("-")[0] for name in found})
    return not any(name.startswith(begins) for name in files.keys() - found.keys())


def _which_files(known: Mapping[str, str] | None, found: Mapping[str, str] | None) -> str:
    """Says which files have changed, where only some have: then a copy is damaged."""
    if not known or not found:
        return ""
    if known.keys() != found.keys():
        return f" It was in {_few(known)}, and is in {_few(found)}: the same weights in other files are not recognised."
    changed = [file for file in known if known[file] != found[file]]
    return f" Of {len(known)} files {len(changed)} differ: {', '.join(changed)}." if len(known) > 1 else ""


def _few(files: Mapping[str, str]) -> str:
    first = min(files)
    return first if len(files) == 1 else f"{len(files)} files, such as {first}"


def _which_revision(known: Mapping[str, Any], base: Mapping[str, Any]) -> str:
    """Says which commit of the same repository it was."""
    commit = known.get("revision")
    if commit in (None, base["revision"]) or known.get("name") != base["name"]:
        return ""
    return f" It was revision {commit}: model.revision={commit}."
