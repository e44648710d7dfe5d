"""What `lora-dpo merge` is given: runs and adapters, and the base model that they belong upon."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lora_dpo.console import note
from lora_dpo.errors import UserError
from lora_dpo.evaluation.subjects import find, model_below
from lora_dpo.model.hashes import weights_hash
from lora_dpo.model.lineage import check_base, check_trained, own_hashes
from lora_dpo.model.location import local_copy
from lora_dpo.model.record import read_record
from lora_dpo.model.weights import fetched
from lora_dpo.recipe.loading import with_model_overrides
from lora_dpo.recipe.run_folder import RunFolder
from lora_dpo.recipe.schema import ModelSection

_ADAPTER_FILES = ("*.json", "*.jinja", "*.model", "*.txt")
"""What lies beside an adapter's weights."""

_FREE = ("model.revision", "model.template", "model.trust_remote_code")


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
    def quantised_from(self) -> str | None:
        """The precision in which the base was taken to 4 bits for training; None where it was not, or is unknown."""
        quantisation = (self.record or {}).get("quantization")
        return None if quantisation is None else quantisation["dtype"]

    def as_json(self) -> dict[str, Any]:
        """Returns what a merged model says of this adapter."""
        return {"name": self.name, **own_hashes(self.folder), "provenance": self.record}


def find_sources(
    words: Sequence[str], base: str | None, overrides: Sequence[str] = ()
) -> tuple[list[Source], ModelSection]:
    """Finds adapters, and the model that they belong upon.

    Args:
        words: Run folders, adapter folders, checkpoints or Hub ids.
        base: What the user says the model is; None is what the first adapter says.
        overrides: `model.KEY=VALUE` words: how the base is loaded.

    Raises:
        UserError: One is not there, or no adapter, or an override is wrong.
    """
    found = [find(word) for word in words]
    for word, named in zip(words, found, strict=True):
        whole = named.run is not None and named.run.load_recipe().adapter.method == "full"
        if named.kind == "model" or whole:
            raise UserError(f"{word} is a whole model, so there is nothing to merge.", fix=f"It is in {named.place}.")
    sources = []
    for word, named in zip(words, found, strict=True):
        folder = Path(named.place).expanduser()
        if not folder.is_dir():
            folder = local_copy(named.place, fetched(named.place, None).name, _ADAPTER_FILES)
        sources.append(Source(word, folder, named.run, read_record(folder)))
    return sources, with_model_overrides(model_below(found[0], base), overrides, _FREE)


def check_stack(sources: Sequence[Source], base: Mapping[str, Any]) -> None:
    """Checks that adapters and base belong together, in this order.

    Args:
        sources: The adapters.
        base: What `identify` returns of the base.

    Raises:
        UserError: An adapter has changed, is of another base, or is in another one already.
    """
    hashes = [weights_hash(str(source.folder), None) for source in sources]
    if twice := [source.name for place, source in enumerate(sources) if hashes[place] in hashes[:place]]:
        raise UserError(f"{twice[0]} is given twice.", why="Its change would be made twice.", fix="Give it once.")
    for place, source in enumerate(sources):
        check_trained(source.name, source.folder, source.record)
        if source.record is None:
            continue
        _check_not_twice(source, dict(zip(hashes, sources, strict=True)))
        if _is_merge(source.record["model"].get("provenance"), base, hashes[:place]):
            _check_not_on_four_bits(source)
        else:
            check_base(source.name, source.record, base)
            if place > 0:
                note(
                    f"{source.name} was trained on {base['name']} without the adapters before it: together they make a "
                    "model that nobody has trained."
                )


def _check_not_on_four_bits(source: Source) -> None:
    """Refuses an adapter that was trained on 4 bits of a merged model: 4 bits of the base would be another model."""
    if source.quantised_from is not None:
        raise UserError(
            f"{source.name} was trained on 4-bit weights of the merged model, not of the base.",
            why="What the first adapters add was taken to 4 bits too: base and adapters together are another model.",
            fix=f"Merge the first ones, then {source.name} alone into the result: --base THAT_MODEL.",
        )


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
