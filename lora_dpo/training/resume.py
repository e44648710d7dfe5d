"""Where a run goes on: which checkpoint, whether it is of this recipe and data, and what the run folder keeps."""

from __future__ import annotations

import json
import shutil
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from filelock import FileLock

from lora_dpo.console import note
from lora_dpo.errors import UserError
from lora_dpo.files import write_json
from lora_dpo.model.base import resolve
from lora_dpo.model.hashes import weights_hash
from lora_dpo.model.precision import choose_dtype
from lora_dpo.recipe.meaning import changed_meaning
from lora_dpo.recipe.resume import resume_folder
from lora_dpo.recipe.run_folder import RunFolder
from lora_dpo.recipe.schema import Recipe
from lora_dpo.training.checkpoints import Checkpoint, Checkpoints, read
from lora_dpo.training.reference_policy import adapter_hash


def find_start(
    recipe: Recipe, run: RunFolder, data: dict[str, str], origin: dict[str, str | None], *, overwrite: bool
) -> Checkpoint | None:
    """Returns the checkpoint that the run goes on from, or None for the beginning.

    Args:
        recipe: The recipe; `run.resume` says where to look.
        run: The run folder.
        data: Hash of each split's pairs.
        origin: What the recipe only names, as `origin_of` finds it now.
        overwrite: An earlier run of this name is to be replaced.

    Raises:
        UserError: The checkpoint asked for is not whole, or is of another recipe or other data.
    """
    start, resume, begun = None, recipe.run.resume, run.is_run and not overwrite
    # The same command again, after a stop or a requeue, goes on with what it has done and not with what it began.
    if begun and (resume == "auto" or (resume != "never" and run.began_with(resume))):
        start = _newest(run)
    if start is None and (named := resume_folder(recipe)) is not None:
        start = _asked_for(named, run, overwrite=overwrite)
    elif start is None and begun and resume == "auto":
        note(f"{run.path} has no checkpoint yet: it begins again.")
    if start is not None:
        _check_same(start, recipe, data, origin)
    return start


def origin_of(recipe: Recipe) -> dict[str, str | None]:
    """Returns what a recipe only names: hashes of the weights that it begins with, and this machine's precision."""
    return {
        "model.name": weights_hash(resolve(recipe.model), recipe.model.revision),
        "adapter.init_from": adapter_hash(recipe.adapter.init_from),
        "model.dtype": str(choose_dtype(recipe.model.dtype)).removeprefix("torch."),
    }


def _asked_for(named: Path, run: RunFolder, *, overwrite: bool) -> Checkpoint:
    if RunFolder(named).is_run:
        start = _newest(RunFolder(named))
        if start is None:
            raise UserError(f"run.resume is {named}, a run without a checkpoint.", fix="Name another, or leave it out.")
    else:
        start = read(named)
        if (damage := start.damage()) is not None:
            raise UserError(f"{start.path} is damaged: {damage}.", fix="Use another one: run.resume=PATH, or auto.")
    if overwrite and _is_own(start, run):
        raise UserError(
            f"--overwrite would remove {start.path}, which run.resume names.", fix="Leave --overwrite out to go on."
        )
    return start


def _newest(run: RunFolder) -> Checkpoint | None:
    start, damaged = Checkpoints(run.checkpoints).newest()
    for line in damaged:
        note(f"Passed over: {line}.")
    if start is None and damaged:
        raise UserError(
            f"{run.path} has no whole checkpoint left to go on from.",
            why="All of them are damaged, or of another version of lora-dpo; see above.",
            fix="Put one back from a copy, or begin anew with --overwrite.",
        )
    return start


def _check_same(start: Checkpoint, recipe: Recipe, data: dict[str, str], origin: dict[str, str | None]) -> None:
    if changed := changed_meaning(Recipe.model_validate(start.about.recipe), recipe):
        raise UserError(
            f"{start.path} is of another recipe.",
            why="\n".join(changed),
            fix="Take the old values to go on, or begin anew under another run.name.",
        )
    other = [split for split, digest in start.about.data.items() if data.get(split) != digest]
    if other:
        raise UserError(
            f"{start.path} was trained on other data.",
            why=f"The pairs of {', '.join(other)} have changed since.",
            fix="Put the data back to go on, or begin anew under another run.name.",
        )
    changed = [
        f"{key}: {old} -> {origin[key]}" for key, old in start.about.origin.items() if old not in (None, origin[key])
    ]
    if changed:
        raise UserError(
            f"{start.path} began with another model, or in another precision, under the same names.",
            why="\n".join(changed),
            fix="Put the old one back to go on, or begin anew under another run.name.",
        )


def _is_own(start: Checkpoint, run: RunFolder) -> bool:
    return start.path.resolve().parent == run.checkpoints.resolve()


def open_run(recipe: Recipe, run: RunFolder, start: Checkpoint | None, *, overwrite: bool) -> FileLock:
    """Makes the run folder, or opens it again; metrics.jsonl then ends where the checkpoint was written.

    Returns:
        The lock that this process holds on the folder until it ends.

    Raises:
        UserError: Something is here already and may not be replaced, or another process writes here.
    """
    if start is None:
        return run.create(recipe, overwrite=overwrite)
    if _is_own(start, run):
        lock = run.reopen(recipe)
        Checkpoints(run.checkpoints).forget_after(start.about.step)
    else:
        lock = run.create(recipe, overwrite=overwrite)
        metrics = RunFolder(start.path.parent.parent).metrics
        if metrics.is_file():
            shutil.copyfile(metrics, run.metrics)
    _cut(run.metrics, start.about.metrics_bytes)
    return lock


def _cut(metrics: Path, size: int) -> None:
    found = metrics.stat().st_size if metrics.is_file() else 0
    if found < size:
        note(f"{metrics} has {found} of the {size} bytes that it had at the checkpoint, so earlier steps are missing.")
    elif found > size:
        with metrics.open("r+b") as file:
            file.truncate(size)


def write_provenance(run: RunFolder, now: dict[str, Any], start: Checkpoint | None) -> None:
    """Writes what the run is made of; for one that goes on, adds to what was written at its beginning.

    Args:
        run: The run folder.
        now: This process's `provenance`.
        start: The checkpoint that it goes on from, if any.
    """
    if start is None or not run.provenance.is_file():
        write_json(run.provenance, now)
        return
    first = json.loads(run.provenance.read_text(encoding="utf-8"))
    at = datetime.now(UTC).isoformat(timespec="seconds")
    same = ("schema_version", "stage", "model", "parents", "quantization", "data", "seed")
    again = {"step": start.about.step, "at": at, **{key: value for key, value in now.items() if key not in same}}
    write_json(run.provenance, {**first, "resumed": [*first.get("resumed", []), again]})
