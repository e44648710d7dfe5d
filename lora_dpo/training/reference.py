"""The reference's log-probs of a run's pairs: from the disk where they are known, computed and kept where not."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from lora_dpo.console import is_main_process, note
from lora_dpo.model.cache import cache_folder
from lora_dpo.model.precision import choose_dtype
from lora_dpo.recipe.schema import Recipe
from lora_dpo.training.agreement import from_first
from lora_dpo.training.reference_check import check_against_live
from lora_dpo.training.reference_policy import ReferencePolicy, reference_policy
from lora_dpo.training.reference_store import Entries, ReferenceStore
from lora_dpo.tree.ragged import Ragged
from lora_dpo.tree.sequences import Completion, Distinct

if TYPE_CHECKING:
    from lora_dpo.training.trainer import PreferenceTrainer

_FLUSH_SECONDS = 30.0


class ReferenceCache:
    """Reference log-probs of one policy, in the user's cache and in the run that uses them.

    The run's own copy comes first: a run that is resumed reads what it has read before, whatever others have written
    since, and though the cache may have been cleared.

    Args:
        policy: The reference policy.
        per_token: Whether the values of the tokens are needed, rather than their sums.
        run_copy: Folder for the run's own copy; None keeps none.
        after_batch: Called after each forward pass, equally often on every process; what it raises ends the pass.

    Attributes:
        found: Sequences whose log-probs were known.
        computed: Sequences whose log-probs were not.
    """

    def __init__(
        self, policy: ReferencePolicy, *, per_token: bool, run_copy: Path | None, after_batch: Callable[[], None]
    ) -> None:
        self._shared = ReferenceStore(cache_folder() / "reference", policy, per_token=per_token)
        self._own = None if run_copy is None else ReferenceStore(run_copy, policy, per_token=per_token)
        self._after_batch = after_batch
        self._uncopied: Entries | None = None
        self.found = self.computed = 0

    @property
    def folder(self) -> Path:
        """Where the policy's log-probs lie for all runs."""
        return self._shared.folder

    @property
    def folders(self) -> list[Path]:
        """Where the policy's log-probs lie: those of all runs, and the run's own copy."""
        return [store.folder for store in (self._shared, self._own) if store is not None]

    def values(self, trainer: PreferenceTrainer, wanted: Distinct) -> Ragged:
        """Returns the log-probs of all sequences, the same on every process.

        Args:
            trainer: Computes what is missing.
            wanted: The sequences.
        """
        own, known = from_first(lambda: self._read(wanted))
        missing = np.flatnonzero(known.find(wanted.keys) < 0)
        self.found, self.computed = len(wanted.keys) - len(missing), len(missing)
        note(
            f"Reference log-probs: {self.found:,} of {len(wanted.keys):,} sequences are in the cache; "
            f"computing {self.computed:,}."
        )
        if len(missing):
            sequences = [wanted.sequences[place] for place in missing]
            known = Entries.merged([known, self._compute(trainer, wanted.keys[missing], sequences)])
        self._uncopied = known if own < len(wanted.keys) else None
        return known.values

    def copy_to_run(self) -> None:
        """Writes the run's own copy, where it does not hold all that was asked for."""
        if self._own is not None and self._uncopied is not None and is_main_process():
            self._own.write(self._uncopied)

    def _read(self, wanted: Distinct) -> tuple[int, Entries]:
        """Returns how many of the sequences are in the run's own copy, and the entries of all that are known."""
        own = Entries.merged([]) if self._own is None else self._own.read()
        both = Entries.merged([own, self._shared.read()])
        places = both.find(wanted.keys)
        known = places[places >= 0]
        return int((own.find(wanted.keys) >= 0).sum()), Entries(both.keys[known], both.values.take(known))

    def _compute(self, trainer: PreferenceTrainer, keys: NDArray[np.bytes_], sequences: list[Completion]) -> Entries:
        """Computes sequences on all processes, each of which writes its part every `_FLUSH_SECONDS` and at the end."""
        if is_main_process():
            self._shared.describe()
        values, done = trainer.reference_zeros(sequences), []
        written = time.monotonic()
        try:
            for places in trainer.reference_pass(sequences, values):
                done += places
                if time.monotonic() - written >= _FLUSH_SECONDS:
                    self._write(keys, values, done)
                    done, written = [], time.monotonic()
                self._after_batch()
        finally:  # what has been computed is kept, however the pass ends
            self._write(keys, values, done)
        return Entries(keys, trainer.over_processes(values))

    def _write(self, keys: NDArray[np.bytes_], values: Ragged, done: list[int]) -> None:
        places = np.sort(np.array(done, np.int64))
        self._shared.write(Entries(keys[places], values.take(places)))


def fill_reference(
    trainer: PreferenceTrainer,
    recipe: Recipe,
    *,
    run_copy: Path | None = None,
    after_batch: Callable[[], None] = lambda: None,
) -> ReferenceCache | None:
    """Gives a trainer's pairs the columns of reference log-probs that TRL reads.

    Args:
        trainer: A trainer that has not started.
        recipe: Its recipe.
        run_copy: Folder for the run's own copy of the values; None keeps none.
        after_batch: Called after each forward pass, equally often on every process; what it raises ends the pass, of
            which all that was computed is kept.

    Returns:
        The cache, or None where nothing tells the reference from another one, so that nothing is kept on disk.

    Raises:
        UserError: The cache cannot be read or written, or what it holds is not what the reference computes.
    """
    policy = from_first(lambda: reference_policy(trainer, recipe))
    if policy is None:
        note("The model has no files that it could be known by, so its reference log-probs are not kept on disk.")
        trainer.compute_reference()
        return None
    cache = ReferenceCache(policy, per_token=trainer.ld_alpha is not None, run_copy=run_copy, after_batch=after_batch)
    trainer.reference_cache = cache
    trainer.compute_reference()
    check_against_live(trainer, choose_dtype(recipe.model.dtype), cache.folders)
    cache.copy_to_run()
    return cache
