"""What `lora-dpo push` and `lora-dpo card` are given: a run, or the folder of an adapter or a model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from lora_dpo.console import note
from lora_dpo.errors import UserError
from lora_dpo.evaluation.subjects import find, safe_name
from lora_dpo.hub.documents import read_json
from lora_dpo.model.made_of import is_made_of
from lora_dpo.model.record import read_record
from lora_dpo.recipe.run_folder import RunFolder
from lora_dpo.recipe.schema import HubSection, Recipe

Which = Literal["adapter", "merged"]
TRAINING = "training"
"""Folder of a repository with what is known of the training: beside the weights, a recipe.yaml would make it a run."""
_REPORT_VERSION = 2


@dataclass(frozen=True, slots=True)
class Subject:
    """What is published.

    Attributes:
        kind: What it is.
        folder: Where it is.
        run: The run that it is from, if it still lies there.
        record: What it says of itself; None where it was made elsewhere.
    """

    kind: Literal["adapter", "model"]
    folder: Path
    run: RunFolder | None
    record: dict[str, Any] | None

    @property
    def training(self) -> dict[str, Any] | None:
        """The record of the last training that is in it; None where it was made elsewhere."""
        if self.record is None or self.record.get("stage") != "merge":
            return self.record
        return self.record["adapters"][-1]["provenance"] if self.record["adapters"] else None

    @property
    def name(self) -> str:
        """What it may be called."""
        return safe_name(self.run.path.name if self.run is not None else self.folder.resolve().name)

    @property
    def recipe(self) -> Recipe | None:
        """The recipe of the last training; None where it is not known, or another version's."""
        try:
            if self.run is not None:
                return self.run.load_recipe()
            known = (self.training or {}).get("recipe")
            return None if known is None else Recipe.model_validate(known)
        except (UserError, ValueError):
            return None


def find_subject(word: str, which: Which | None) -> Subject:
    """Finds what is to be published.

    Args:
        word: Run folder, or folder of an adapter or a model.
        which: What of a run; None is the merged model where there is one, else the adapter.

    Raises:
        UserError: It is not there, or the run has not got it.
    """
    path = Path(word).expanduser()
    found = find(word)  # of what is not there, it names what is near
    if not path.exists():
        raise UserError(f"{word} is on the Hub already.", fix="Give a folder of this machine.")
    if found.run is not None and (path / "recipe.yaml").is_file():
        return _of_run(found.run, which)
    kind: Literal["adapter", "model"] = "adapter" if (path / "adapter_config.json").is_file() else "model"
    if which is not None and (which == "adapter") != (kind == "adapter"):
        what = "an adapter" if kind == "adapter" else "a whole model"
        raise UserError(f"{word} is {what}, so --{which} does not go with it.", fix="Leave it out.")
    subject = Subject(kind, path, None, read_record(path))
    return Subject(kind, path, _run_of(subject), subject.record)


def hub_section(word: str) -> HubSection:
    """Returns what a run's recipe says of publishing; the usual where it is no run."""
    run = find(word).run
    return HubSection() if run is None else run.load_recipe().hub


def _of_run(run: RunFolder, which: Which | None) -> Subject:
    if run.load_recipe().adapter.method == "full":
        if which == "adapter":
            raise UserError(
                f"{run.path} has no adapter: adapter.method full trains the whole model.",
                fix=f"Leave --adapter (hub.what) out; {run.model} is what is published.",
            )
        return Subject("model", run.model, run, read_record(run.model))
    if run.merged.is_dir() and which != "adapter":
        record = read_record(run.merged)
        _check_is_of(run, record)
        if which is None:
            note(f"Taking the merged model, {run.merged}; --adapter takes the adapter.")
        return Subject("model", run.merged, run, record)
    if which == "merged":
        raise UserError(
            f"{run.path} has no merged model.",
            fix=f"Make it with `lora-dpo merge {run.path} -o {run.merged}`, or use --adapter.",
        )
    if which is None:
        note(f"Taking the adapter, {run.adapter}: there is no merged model in {run.path}.")
    return Subject("adapter", run.adapter, run, read_record(run.adapter))


def _check_is_of(run: RunFolder, merged: dict[str, Any] | None) -> None:
    """Refuses a merged model that something else was made into: the card would give it this run's results."""
    if not is_made_of(merged, read_record(run.adapter)):
        why = "It says of other adapters that they are in it." if merged else "It has no provenance.json."
        raise UserError(
            f"{run.merged} is not the model that this run has trained, so its results are not that model's.",
            why=why,
            fix=f"Move it away and merge again, `lora-dpo merge {run.path} -o {run.merged}`; or give that folder "
            "itself, which is published without this run's results.",
        )


def _run_of(subject: Subject) -> RunFolder | None:
    """Returns the run that a folder's content is from, where it lies around it or where its recipe says."""
    recipe = subject.recipe
    places = [subject.folder.absolute().parent, *([] if recipe is None else [RunFolder.of(recipe).path])]
    merged = (subject.record or {}).get("stage") == "merge"
    made = (subject.record or {}).get("weights_sha256")
    for run in map(RunFolder, places):
        trained = run.adapter if run.adapter.is_dir() else run.model
        own = read_record(trained) if run.is_run and run.is_complete and trained.is_dir() else None
        if own is None:
            continue
        if is_made_of(subject.record, own) if merged else made is not None and own.get("weights_sha256") == made:
            return run
    return None


def read_report(subject: Subject) -> dict[str, Any] | None:
    """Returns the report of what is published: its run's, or one that travelled with it and with its record.

    Raises:
        UserError: It is damaged.
    """
    if subject.record is None:
        return None
    file = subject.folder / TRAINING / "report.json" if subject.run is None else subject.run.report_json
    report = read_json(file) if file.is_file() else {}
    return report if report.get("schema_version") == _REPORT_VERSION else None
