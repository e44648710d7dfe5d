"""An evaluation's forward passes: shared by the processes, kept as they come, in smaller batches where memory ends."""

from __future__ import annotations

import gc
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object
from accelerate.utils.memory import should_reduce_batch_size

from lora_dpo.console import note, tracked
from lora_dpo.errors import UserError
from lora_dpo.model.hashes import weights_hash

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Work:
    """How the values of an evaluation's items are computed.

    Attributes:
        folder: Where values are kept, so that an evaluation that was interrupted goes on; None keeps none. All that the
            values depend on besides an item's name must decide which folder it is.
        together: Every process must make every forward pass, since the model's weights are divided over them.
    """

    folder: Path | None = None
    together: bool = False

    def map(
        self,
        what: str,
        items: Sequence[T],
        names: Sequence[str],
        compute: Callable[[list[T]], Sequence[Any]],
        *,
        batch_size: int,
        size: Callable[[T], int],
    ) -> list[Any]:
        """Computes a value for every item whose value is not known yet.

        Args:
            what: What the values are, in a few words: for the progress bar, and for the file that keeps them.
            items: The items.
            names: What each item's value is kept under; items with one name have one value.
            compute: Returns the values of a batch, of which JSON can keep each.
            batch_size: Items a batch. Where memory runs out it is halved, and that is said.
            size: Larger items are computed first, so that memory runs out early if it does.

        Returns:
            The values in the items' order, the same on every process.

        Raises:
            UserError: Memory runs out for a single item, or for processes that must go in step.
        """
        known = self._known(what)
        missing = {name: place for place, name in enumerate(names) if name not in known}
        places = sorted(missing.values(), key=lambda place: (-size(items[place]), place))
        state = PartialState()
        own = places if self.together else places[state.process_index :: state.num_processes]
        computed = self._computed(what, items, names, own, compute, batch_size)
        found = dict(tracked(computed, what, total=len(own)))
        parts = [found] if self.together or state.num_processes == 1 else gather_object([found])
        for part in parts:
            known |= part
        return [known[name] for name in names]

    def smaller(self, what: str, size: int, error: Exception) -> int:
        """Returns the batch size to go on with where memory has run out, and says it.

        Args:
            what: What is computed, in a few words.
            size: The batch size that was too large.
            error: What was raised.

        Raises:
            UserError: It cannot be smaller, or the processes must go in step.
        """
        if size == 1 or self.together:
            raise UserError(
                f"There is not enough memory: {what}, {size} at once.",
                fix="Use a smaller evaluation.batch_size, shorter answers, or a larger GPU." if size > 1 else "",
            ) from error
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        note(f"There was not enough memory: {what}, {size} at once. It goes on with {size // 2}.")
        return size // 2

    def _computed(
        self,
        what: str,
        items: Sequence[T],
        names: Sequence[str],
        places: list[int],
        compute: Callable[[list[T]], Sequence[Any]],
        batch_size: int,
    ) -> Iterator[tuple[str, Any]]:
        done = 0
        while done < len(places):
            batch = places[done : done + batch_size]
            try:
                values = compute([items[place] for place in batch])
            except Exception as error:
                if not should_reduce_batch_size(error):
                    raise
                batch_size = self.smaller(what, len(batch), error)
                continue
            new = {names[place]: value for place, value in zip(batch, values, strict=True)}
            self._keep(what, new)
            yield from new.items()
            done += len(batch)

    def _known(self, what: str) -> dict[str, Any]:
        state, known = PartialState(), {}
        if self.folder is not None and state.is_main_process:
            for file in sorted(self.folder.glob(f"{_slug(what)}.*.jsonl")):
                known |= dict(_entries(file))
        return broadcast_object_list([known])[0] if state.num_processes > 1 else known

    def _keep(self, what: str, values: Mapping[str, Any]) -> None:
        state = PartialState()
        if self.folder is None or (self.together and not state.is_main_process):
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / f"{_slug(what)}.{state.process_index}.jsonl").open("a", encoding="utf-8") as file:
            # The newline comes first, so that a line which a killed process left unfinished spoils no other.
            file.writelines("\n" + json.dumps(entry, ensure_ascii=False) for entry in values.items())


def name_of(*parts: Any) -> str:
    """Returns the name of a value that depends on these parts, of which JSON can keep each, and on nothing else."""
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]


def kept_values(folder: Path, trained: str, origin: Mapping[str, str | None], also: Sequence[str] = ()) -> Path | None:
    """Returns where the values of a trained adapter or model are kept.

    Args:
        folder: What holds the values of all; theirs are below it.
        trained: The adapter or model: local folder or Hub id.
        origin: Hashes of the weights that it is put upon or compared with, and the precision.
        also: Patterns of files that count besides the weights.

    Returns:
        A folder for these very weights, or None where there are no files that they could be known by.
    """
    weights = weights_hash(trained, None, also)
    if weights is None:
        return None
    parts = json.dumps([weights, dict(origin)], sort_keys=True)
    return folder / hashlib.sha256(parts.encode()).hexdigest()[:16]


def _entries(file: Path) -> Iterator[tuple[str, Any]]:
    for line in file.read_text(encoding="utf-8").splitlines():
        try:
            name, value = json.loads(line)
        except ValueError:  # a process was killed while it wrote the line
            continue
        yield name, value


def _slug(what: str) -> str:
    return "-".join(what.replace(",", " ").split())
