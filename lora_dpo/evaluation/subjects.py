"""What SUBJECT on the command line means: a run, an adapter or a model, in a folder or on the Hub."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from lora_dpo.errors import UserError, did_you_mean, nearest
from lora_dpo.model.location import find_file, locate
from lora_dpo.model.record import read_record
from lora_dpo.recipe.folds import fold_runs
from lora_dpo.recipe.run_folder import RunFolder
from lora_dpo.recipe.schema import ModelSection

_ADAPTER, _MODEL = "adapter_config.json", "config.json"
_OWN_NAMES = {"adapter", "model"}
"""What lora-dpo calls the folders of what it has trained: as a name they say nothing."""


@dataclass(frozen=True, slots=True)
class Named:
    """What a word stands for.

    Attributes:
        kind: What it is.
        place: The trained adapter or model: local folder, Hub id, or whatever else `model.name` may be.
        run: The run that it is, or whose checkpoint it is; None where nothing is known of its training.
        name: What reports call it.
    """

    kind: Literal["run", "adapter", "model"]
    place: str
    run: RunFolder | None
    name: str


def find(word: str) -> Named:
    """Returns what a word stands for.

    Args:
        word: Run folder, adapter folder, model folder, or Hub id of an adapter or a model.

    Raises:
        UserError: It stands for nothing; the nearest name is shown.
    """
    path = Path(word).expanduser()
    if path.is_dir():
        return _in_folder(path, word)
    if word.startswith("package:") or path.suffix == ".gguf":
        locate(word)
        return Named("model", word, None, safe_name(Path(word).stem))
    if path.exists():
        raise UserError(f"{word} is a file.", fix="Give the folder of a run, an adapter or a model, or a Hub id.")
    beside = path.parent != Path(".") and path.parent.is_dir()
    if path.is_absolute() or beside or word.startswith((".", "~")) or word.count("/") > 1:
        raise _nothing(word, f"There is no run, adapter or model at {word}.")
    return _on_hub(word)


def base_of(named: Named, base: str | None) -> ModelSection:
    """Returns the model that an adapter or a model from elsewhere is compared with.

    Args:
        named: The adapter or model.
        base: What the user says it is; None is what the adapter says.

    Raises:
        UserError: Neither says it, or it is not there.
    """
    if base:
        return ModelSection(name=base)
    if named.kind == "model":
        raise UserError(
            f"{named.place} is a whole model, which does not say what it is to be compared with.",
            fix="Name the model before the training: --base MODEL.",
        )
    file = find_file(named.place, _ADAPTER) or Path(named.place, _ADAPTER)
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
        own, revision = config.get("base_model_name_or_path"), config.get("revision")
    except (OSError, ValueError, AttributeError) as error:
        raise UserError(f"the adapter's configuration cannot be read: {error}", where=str(file)) from None
    if not own:
        raise UserError(f"{named.place} does not say which model it belongs to.", fix="Name it: --base MODEL.")
    try:
        locate(own)
    except UserError as error:
        raise UserError(
            f"The base of {named.place} is not here. {error.what}", fix="Say where it is: --base MODEL."
        ) from None
    section = ModelSection(name=own, revision=revision)
    return section if revision else as_recorded(section, named.place)


def model_below(named: Named, base: str | None) -> ModelSection:
    """Returns the model that an adapter belongs upon, read as it was for the training.

    What a run or an adapter of ours says of itself comes first: PEFT may know the base by a path on the machine that
    trained it. The base's own code is not run on the word of an adapter from elsewhere.

    Args:
        named: The adapter.
        base: Where the user says the model is; None is what the adapter says.

    Raises:
        UserError: Nothing says which model it is, or it is not there.
    """
    if named.run is not None:
        model = as_recorded(named.run.load_recipe().model, named.run.path)
    elif "recipe" in (record := read_record(named.place) or {}):
        recorded = ModelSection.model_validate({**record["recipe"]["model"], "trust_remote_code": False})
        model = as_recorded(recorded, named.place)
    else:
        return base_of(named, base)
    return model if base in (None, model.name) else model.model_copy(update={"name": base, "revision": None})


def was_on_four_bits(named: Named) -> bool:
    """Returns whether an adapter was trained on 4-bit weights, which its run or its own record says."""
    if named.run is not None:
        return named.run.load_recipe().adapter.method == "qlora"
    return (read_record(named.place) or {}).get("quantization") is not None


def as_recorded(model: ModelSection, place: str | Path) -> ModelSection:
    """Returns a model at the commit that was trained upon, since the Hub may have moved on.

    Args:
        model: The model, as a recipe names it.
        place: The run, or what was trained, which has a record if it is known.
    """
    trained_on = (read_record(place) or {}).get("model", {})
    commit = trained_on.get("revision") if trained_on.get("name") == model.name else None
    return model if commit is None else model.model_copy(update={"revision": commit})


def safe_name(name: str) -> str:
    """Returns a name that can be a folder's and a run's."""
    return re.sub(r"[^\w.-]+", "_", name, flags=re.ASCII).lstrip("._-") or "model"


def _in_folder(path: Path, word: str) -> Named:
    if (path / "recipe.yaml").is_file():
        return _run(RunFolder.open(path))
    kind: Literal["adapter", "model"] = "adapter" if (path / _ADAPTER).is_file() else "model"
    if kind == "model" and not (path / _MODEL).is_file():
        raise _nothing(word, f"{word} holds neither a run nor an adapter nor a model.")
    resolved, folder = path.resolve(), path.absolute().parent
    if RunFolder(folder).is_run and resolved.name in _OWN_NAMES:
        return _run(RunFolder(folder))
    run = RunFolder(folder.parent)
    if run.is_run and folder == run.checkpoints:
        return Named(kind, str(path), run, safe_name(f"{run.path.name}-{resolved.name}"))
    parts = resolved.parts[-2:] if resolved.name in _OWN_NAMES else resolved.parts[-1:]
    return Named(kind, str(path), None, safe_name("--".join(parts)))


def _run(run: RunFolder) -> Named:
    recipe = run.load_recipe()
    if folds := fold_runs(recipe):
        raise UserError(
            f"{run.path} is a cross-validation, which has no adapter of its own.",
            fix=f"Give one of its folds, such as {folds[0].path}.",
        )
    if not run.is_complete:
        raise UserError(
            f"{run.path} holds no finished run.",
            fix=f"Start it again with `lora-dpo {recipe.run.stage}`: it goes on and evaluates. A checkpoint can be "
            f"measured before: {run.checkpoints}/step-N.",
        )
    trained, file = (run.model, _MODEL) if recipe.adapter.method == "full" else (run.adapter, _ADAPTER)
    if not (trained / file).is_file():
        raise UserError(f"{run.path} has no {trained.name}: there is no {trained / file}.", fix="Put it back.")
    return Named("run", str(trained), run, recipe.run.name)


def _on_hub(word: str) -> Named:
    kinds: tuple[tuple[Literal["adapter", "model"], str], ...] = (("adapter", _ADAPTER), ("model", _MODEL))
    try:
        kind = next((kind for kind, file in kinds if find_file(word, file) is not None), None)
    except UserError as error:
        raise _nothing(word, error.what, error.fix) from None
    if kind is None:
        raise _nothing(
            word, f"{word} is neither a folder here, nor an adapter or a model on the Hub or in its local cache."
        )
    return Named(kind, word, None, safe_name(word.replace("/", "--")))


def _nothing(word: str, what: str, fix: str = "") -> UserError:
    path = Path(word).expanduser()
    places = dict.fromkeys(place for place in (path.parent, Path("runs")) if place.is_dir())
    known = {
        entry.name: str(entry)
        for place in places
        for entry in sorted(place.iterdir())
        if any((entry / file).is_file() for file in ("recipe.yaml", _ADAPTER, _MODEL))
    }
    near = nearest(path.name, known)
    meant = f"Did you mean '{known[near]}'?" if near else did_you_mean(word, known.values())
    return UserError(what, fix=" ".join(filter(None, (meant, fix))))
