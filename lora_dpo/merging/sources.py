"""What `lora-dpo merge` is given: runs and adapters, and the base model that they belong upon."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lora_dpo.console import note
from lora_dpo.errors import UserError
from lora_dpo.model.hashes import weights_hash
from lora_dpo.model.lineage import check_base, check_parents, check_whole
from lora_dpo.model.location import local_copy
from lora_dpo.model.record import read_record
from lora_dpo.recipe.run_folder import RunFolder
from lora_dpo.recipe.schema import ModelSection

_CONFIG = "adapter_config.json"


@dataclass(frozen=True, slots=True)
class Source:
    """One adapter.

    Attributes:
        name: What the user calls it.
        folder: Where it is.
        run: The run that it is from, if it still lies there.
        record: What it says of itself; None where it was made elsewhere.
    """

    name: str
    folder: Path
    run: RunFolder | None
    record: dict[str, Any] | None

    @property
    def base(self) -> ModelSection:
        """The base model, as whoever trained the adapter named it."""
        if self.run is not None:
            return self.run.load_recipe().model
        if self.record is not None:
            return ModelSection.model_validate(self.record["recipe"]["model"])
        config = json.loads((self.folder / _CONFIG).read_text(encoding="utf-8"))
        return ModelSection(name=config["base_model_name_or_path"], revision=config.get("revision"))

    @property
    def quantised_from(self) -> str | None:
        """The precision in which the base was taken to 4 bits for training; None where it was not, or is unknown."""
        quantisation = (self.record or {}).get("quantization")
        return None if quantisation is None else quantisation["dtype"]

    def as_json(self) -> dict[str, Any]:
        """Returns what a merged model says of this adapter."""
        return {"name": self.name, "weights_sha256": weights_hash(str(self.folder), None), "provenance": self.record}


def find_source(name: str) -> Source:
    """Finds an adapter.

    Args:
        name: Run folder, adapter folder, checkpoint or Hub id.

    Raises:
        UserError: There is none.
    """
    path = Path(name).expanduser()
    run = RunFolder(path)
    if run.is_run:
        return _of_run(name, run)
    if (path / _CONFIG).is_file():
        around = next((RunFolder(folder) for folder in path.resolve().parents[:2] if RunFolder(folder).is_run), None)
        return Source(name, path, around, read_record(path))
    if path.exists():
        what = "a model, no adapter" if (path / "config.json").is_file() else "no run and no adapter"
        raise UserError(f"{name} is {what}.", fix="Give the folder of a run or of a PEFT adapter.")
    if path.is_absolute() or name.startswith((".", "~")) or path.parent.is_dir():
        RunFolder.open(name)  # which is not there, and says what is near
    folder = local_copy(name, None, ("*.json", "*.safetensors", "*.jinja", "*.model", "*.txt"))
    if not (folder / _CONFIG).is_file():
        raise UserError(f"The repository {name} holds no adapter.", fix=f"It would have a {_CONFIG}.")
    return Source(name, folder, None, read_record(folder))


def check_stack(sources: Sequence[Source], base: Mapping[str, Any]) -> None:
    """Checks that adapters and base belong together, in this order.

    Args:
        sources: The adapters.
        base: What `identify` returns of the base.

    Raises:
        UserError: An adapter has changed, is of another base, or is in another one already.
    """
    hashes = [weights_hash(str(source.folder), None) for source in sources]
    for place, source in enumerate(sources):
        if source.record is None:
            note(f"{source.name} has no provenance.json, so that its base is taken on trust.")
            continue
        check_whole(source.name, str(source.folder), source.record)
        check_parents(source.name, source.record)
        _check_not_twice(source, dict(zip(hashes, sources, strict=True)))
        if not _is_merge(source.record["model"].get("provenance"), base, hashes[:place]):
            check_base(source.name, source.record, base)
            if place > 0:
                note(
                    f"{source.name} was trained on {base['name']} without the adapters before it: together they make a "
                    "model that nobody has trained."
                )


def _of_run(name: str, run: RunFolder) -> Source:
    recipe = run.load_recipe()
    if recipe.adapter.method == "full":
        raise UserError(f"{name} trained the whole model, so there is nothing to merge.", fix=f"It is in {run.model}.")
    if not (run.adapter / _CONFIG).is_file():
        raise UserError(
            f"{name} has no adapter yet.",
            why="The run is not through its training.",
            fix="Start it again with `lora-dpo dpo`: it goes on. Or give one of its checkpoints.",
        )
    return Source(name, run.adapter, run, read_record(run.adapter))


def _check_not_twice(source: Source, given: Mapping[str | None, Source]) -> None:
    for digest in _inside(source.record):
        if digest in given and given[digest] is not source:
            raise UserError(
                f"{given[digest].name} is in {source.name} already, which goes on from it.",
                why="Merged one after the other, its change would be made twice.",
                fix=f"Give {source.name} alone.",
            )


def _inside(record: Mapping[str, Any] | None) -> Iterator[str]:
    """Yields the hashes of the adapters that an adapter goes on from, and of those that they go on from."""
    for parent in (record or {}).get("parents", []):
        yield parent["weights_sha256"]
        yield from _inside(parent["provenance"])


def _is_merge(record: Mapping[str, Any] | None, base: Mapping[str, Any], hashes: Sequence[str | None]) -> bool:
    """Returns whether a model is what these adapters make of the base."""
    if not hashes or record is None or record["stage"] != "merge":
        return False
    inside = [adapter["weights_sha256"] for adapter in record["adapters"]]
    return record["model"]["weights_sha256"] == base["weights_sha256"] and inside == list(hashes)
