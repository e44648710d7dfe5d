"""The reference's log-probs, computed before the training by the kernels that train, every distinct sequence once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from accelerate.utils import send_to_device
from torch import Tensor
from tqdm.auto import tqdm
from trl.models.utils import prepare_deepspeed

from lora_dpo.tree.collate import scored_tree
from lora_dpo.tree.fsdp import divide, settle_dtypes
from lora_dpo.tree.local import Recorder
from lora_dpo.tree.ragged import Ragged
from lora_dpo.tree.sequences import (
    TREE_TOKENS,
    Completion,
    Distinct,
    padded,
    padded_batches,
    pair_log_probs,
    scored_values,
    tree_batches,
    unpadded,
)

_COLUMNS = ("ref_chosen_logps", "ref_rejected_logps")
_ROWS = 256
"""Pairs that are collated at a time, to find their sequences."""


class ReferencePass:
    """The part of `PlannedTrainer` that fills TRL's columns of reference log-probs."""

    def compute_reference(self) -> None:
        """Computes the reference's log-probs of all pairs now, so that training needs no reference model."""
        self.precompute_ref_logps = True
        named = self.eval_dataset if isinstance(self.eval_dataset, dict) else {"eval": self.eval_dataset}
        named = {name: rows for name, rows in named.items() if rows is not None}
        self.train_dataset, *others = self._with_reference([self.train_dataset, *named.values()])
        if isinstance(self.eval_dataset, dict):
            self.eval_dataset.update(zip(named, others, strict=True))
        elif others:
            (self.eval_dataset,) = others
        self._release_reference_model()

    def reference_values(self, wanted: Distinct) -> Ragged:
        """Returns the reference's log-probs, the same on every process; to be overridden by what keeps them.

        Args:
            wanted: The sequences.

        Returns:
            Of each sequence its sum, or with `ld_alpha` the values of its scored tokens.
        """
        values = self.reference_zeros(wanted.sequences)
        for _ in self.reference_pass(wanted.sequences, values):
            pass
        return self.over_processes(values)

    def reference_zeros(self, sequences: Sequence[Completion]) -> Ragged:
        """Returns a zero for every value that the reference has of each sequence."""
        return Ragged.zeros([1 if self.ld_alpha is None else sequence.n_scored for sequence in sequences])

    def reference_pass(self, sequences: Sequence[Completion], values: Ragged) -> Iterator[list[int]]:
        """Computes this process's part of the reference's log-probs, with the kernels that train.

        Every process makes the same number of forward passes, and yields after each: ZeRO-3 gathers weights in each.

        Args:
            sequences: Distinct sequences, the same on every process.
            values: Where the log-probs are put: `reference_zeros` of the sequences.

        Yields:
            The places of the sequences that have been computed.
        """
        args, world = self.args, self.accelerator.num_processes
        if self.data_collator.trees:
            batches = tree_batches(sequences, self.batching.tokens or TREE_TOKENS)
        else:  # a pair has two sequences
            size = args.precompute_ref_batch_size or args.per_device_train_batch_size
            batches = padded_batches(sequences, 2 * size)
        model, vectors = self._reference_model(), values.split()
        for first in self.progress(range(0, len(batches), world), "reference log-probs"):
            number = first + self.accelerator.process_index
            places = batches[min(number, len(batches) - 1)]  # the last round may have too few batches
            found = self._reference_of([sequences[place] for place in places], model)
            if number >= len(batches):
                places = []
            for place, vector in zip(places, found, strict=False):
                vectors[place][:] = vector
            yield places

    def over_processes(self, values: Ragged) -> Ragged:
        """Returns the sum over the processes, of which one has each vector and the others have zeros."""
        local = torch.from_numpy(values.values).to(self.accelerator.device)
        return Ragged(self.accelerator.reduce(local, reduction="sum").cpu().numpy(), values.lengths)

    def live_reference(self, rows: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
        """Computes the reference's log-probs of training pairs as a step without a cache does.

        Args:
            rows: Rows of the training data, whose reference has been computed.

        Returns:
            The log-probs that the rows have, those computed now, and the scored tokens; each (2, pairs), chosen first.
        """
        batch = self.data_collator([self.train_dataset[row] for row in rows])
        del batch["pair_weights"]
        batch = send_to_device(batch, self.accelerator.device)
        live = torch.stack(list(self.compute_ref_log_probs(self._reference_model(), batch)))
        self._release_reference_model()
        kept = torch.stack([batch[column] for column in _COLUMNS])
        return kept, live, batch["completion_mask"][:, 1:].sum(1).view(2, -1)

    def progress(self, steps: Iterable[Any], description: str) -> Iterable[Any]:
        """Shows how far a pass over the data is; to be overridden."""
        return tqdm(steps, desc=description, disable=not self.is_world_process_zero())

    def _precompute_ref_logps(self, dataset: Any, name: str, batch_size: int) -> Any:
        return self._with_reference([dataset])[0]  # TRL would compute every pair, and read a cache file of its own

    def _with_reference(self, datasets: list[Any]) -> list[Any]:
        """Returns the data sets with TRL's columns of reference log-probs, each distinct sequence computed once."""
        wanted = Distinct.of([sequence for dataset in datasets for sequence in self._sequences(dataset)])
        vectors = self.reference_values(wanted).split()
        filled, start = [], 0
        for dataset in datasets:
            pairs = wanted.places[start : start + 2 * len(dataset)].reshape(2, -1).T
            start += 2 * len(dataset)
            dataset = dataset.remove_columns([column for column in _COLUMNS if column in dataset.column_names])
            sums = [pair_log_probs(vectors[chosen], vectors[rejected], self.ld_alpha) for chosen, rejected in pairs]
            for column, side in zip(_COLUMNS, zip(*sums, strict=True), strict=True):
                dataset = dataset.add_column(column, list(side))
            filled.append(dataset)
        return filled

    def _sequences(self, dataset: Any) -> list[Completion]:
        """Returns the chosen sequences, then the rejected ones, as TRL's collator cuts them."""
        sides: tuple[list[Completion], list[Completion]] = [], []
        for start in range(0, len(dataset), _ROWS):
            columns = dataset[start : start + _ROWS]
            rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
            both = unpadded(self.data_collator.plain(rows))
            sides[0].extend(both[: len(rows)])
            sides[1].extend(both[len(rows) :])
        return sides[0] + sides[1]

    def _reference_of(self, sequences: list[Completion], model: Any) -> list[Any]:
        """Returns the reference's values of a batch's sequences, in one forward pass."""
        batch: dict[str, Any] = padded(sequences)
        if self.data_collator.trees:
            batch["tree"] = scored_tree(**batch)
        recorder, ld_alpha = Recorder(model), self.ld_alpha
        self.ld_alpha = None  # what it does to a sequence depends on the other one of a pair
        try:
            sums = torch.cat(self.compute_ref_log_probs(recorder, send_to_device(batch, self.accelerator.device)))
        finally:
            self.ld_alpha = ld_alpha
        if ld_alpha is None:
            return list(sums.float().cpu().numpy()[:, None])
        return scored_values(recorder.log_probs.float().cpu().numpy(), sequences)

    def _reference_model(self) -> Any:
        if self.ref_model is None and self.is_deepspeed_enabled:  # as TRL does: training has not built an engine yet
            if self._precompute_engine is None:
                self._precompute_engine = prepare_deepspeed(self.model, self.accelerator)
            return self._precompute_engine
        if self.ref_model is None and self.is_fsdp_enabled:  # Trainer divides it, and takes it to the GPU, only later
            return divide(self.accelerator, self.model)
        return self.ref_model or self.model

    def _release_reference_model(self) -> None:
        """Takes back what `_reference_model` did to the model that is to be trained."""
        if self._precompute_engine is not None:
            # Its hooks would follow the training too, and stop it: the training's engine numbers the modules anew.
            self._precompute_engine.destroy()
            self._precompute_engine = None
        if self.is_fsdp_enabled:
            settle_dtypes(self.model)
