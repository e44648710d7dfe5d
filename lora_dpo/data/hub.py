"""Reads data sets of the Hugging Face Hub through `datasets`, and says in words why one cannot be read."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import nullcontext
from typing import TYPE_CHECKING

from lora_dpo.console import disk_full_error
from lora_dpo.data.row import Row
from lora_dpo.errors import UserError, nearest
from lora_dpo.hub_errors import offline_unless_reachable

if TYPE_CHECKING:
    from datasets import Dataset

_USUAL: dict[str, tuple[str | None, str]] = {
    "truthfulqa/truthful_qa": ("generation", "validation"),
    "HuggingFaceH4/ultrafeedback_binarized": (None, "train_prefs"),
}


def hub_rows(name: str, subset: str | None, split: str | None, *, key: str = "data.path") -> Iterator[Row]:
    """Loads a data set and returns its rows.

    The data set is fetched when this is called; the rows are read as they are asked for.

    Args:
        name: Hub id (`owner/name`), or the folder of a downloaded data set.
        subset: Configuration; None is the usual one of the data set.
        split: Split; None is the usual one of the data set.
        key: The recipe's key that names the data set, for errors.

    Raises:
        UserError: The Hub cannot be reached, or has no such data set, configuration or split.
    """
    usual_subset, usual_split = _USUAL.get(name, (None, "train"))
    split = split or usual_split
    dataset = _load(name, subset or usual_subset, split, key)
    return (Row(values, f"{name} [{split}], row {number}") for number, values in enumerate(dataset, start=1))


def _load(name: str, subset: str | None, split: str, key: str) -> Dataset:
    import datasets

    try:
        with nullcontext() if os.path.isdir(name) else offline_unless_reachable():
            return datasets.load_dataset(name, subset, split=split)
    except Exception as error:
        mistake = disk_full_error(error) or _explain(error, name, subset, split, key)
        if mistake is None:
            raise
        raise mistake from error


def _explain(error: Exception, name: str, subset: str | None, split: str, place: str) -> UserError | None:
    """Returns what the user can do about an error of `load_dataset`, or None if it is none of theirs."""
    from datasets.exceptions import DatasetNotFoundError, DatasetsError
    from httpx2 import HTTPError
    from huggingface_hub.errors import HfHubHTTPError

    text = str(error)
    if isinstance(error, ConnectionError) or "Couldn't find cache for" in text:
        return _unreachable(name, subset, split, place)
    if isinstance(error, ValueError) and (mistake := _explain_choice(text, name, subset, split, place)) is not None:
        return mistake
    if isinstance(error, DatasetNotFoundError):
        gated = "gated dataset" in text
        what = f"the data set {name} is gated" if gated else f"there is no data set {name} on the Hub, or it is private"
        fix = "Correct the name; for a private or gated one put a token that may read it into .env as ACCESS_TOKEN."
    elif isinstance(error, HfHubHTTPError | HTTPError):
        what, fix = f"the data set {name} could not be fetched", "Try again; what has arrived is kept."
    elif isinstance(error, DatasetsError | FileNotFoundError | ValueError | RuntimeError):
        what = f"the data set {name} cannot be read"
        fix = f"Download its files (hf download --repo-type dataset), and name the file with the data in {place}."
    else:
        return None
    why = f"{text}\n{error.__cause__}" if error.__cause__ else text
    return UserError(what, why=why, fix=fix, where=place)


def _explain_choice(text: str, name: str, subset: str | None, split: str, place: str) -> UserError | None:
    """Returns the error for a split or configuration that is not among those `datasets` lists."""
    listed = re.search(r"\[([^\]]*)\]", text)
    known = re.findall(r"['\"]([^'\"]+)['\"]", listed.group(1)) if listed else []
    if "Unknown split" in text:
        what, key, value, kind = f"the data set {name} has no split '{split}'", "hub_split", split, "splits"
    elif "onfig" in text and known:
        key, value, kind = "subset", subset, "configurations"
        what = (
            f"the data set {name} has no configuration '{subset}'" if subset else f"{name} has several configurations"
        )
    else:
        return None
    fix = f"Name one of them as {key}: {place}: [{{path: {name}, {key}: {known[0] if known else '...'}}}]."
    if value is not None and (near := nearest(value, known)):
        fix += f" Did you mean '{near}'?"
    return UserError(what, why=f"Its {kind}: {', '.join(known)}.", fix=fix, where=place)


def _unreachable(name: str, subset: str | None, split: str, place: str) -> UserError:
    folder, keys = name.split("/")[-1], f"subset: {subset}, hub_split: {split}" if subset else f"hub_split: {split}"
    arguments = f"'{name}', '{subset}'" if subset else f"'{name}'"
    return UserError(
        f"the data set {name} is not in the local cache, and the Hugging Face Hub cannot be reached",
        why="It is no local file or folder either. Compute nodes often have no network (or HF_HUB_OFFLINE=1 is set).",
        # `hf download` alone does not fill the cache that `datasets` reads offline.
        fix="On a machine with network (a login node), with the same HF_HOME, run\n"
        f'  python -c "from datasets import load_dataset; load_dataset({arguments})"\n'
        "and start again with HF_HUB_OFFLINE=1. Or fetch the files, and read the folder as the data set:\n"
        f"  hf download --repo-type dataset {name} --local-dir {folder}\n"
        f"  {place}: [{{path: {folder}, {keys}}}]",
        where=place,
    )
