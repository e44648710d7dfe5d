"""A trainer's loop over planned micro-batches, with exact metrics: what trainers of pairs and of examples share."""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.utils.data import DataLoader

from lora_dpo.tree.fsdp import keep_scores_in_float32
from lora_dpo.tree.local import WithoutGather
from lora_dpo.tree.pairs import PairTokens
from lora_dpo.tree.sampler import MicroBatchSampler, PairPlan, PlannedRows, Shape
from lora_dpo.tree.tally import Tally


@dataclass(frozen=True, slots=True)
class Batching:
    """How pairs are put into micro-batches.

    Attributes:
        group_by_prompt: Pairs of one prompt stay next to each other; a step or a micro-batch may end among them.
        equal_prompts: The loss is a mean over the prompts of a step, not over its pairs.
        tokens: Distinct tokens that a micro-batch should have: steps are cut where these are equal. None cuts where
            pairs are.
        global_batch: Pairs a step, over all processes; None is the product of the trainer's own arguments.
    """

    group_by_prompt: bool = True
    equal_prompts: bool = False
    tokens: int | None = None
    global_batch: int | None = None


def tally_sharing(tally: Tally, inputs: Mapping[str, Any]) -> None:
    """Adds how many tokens of a micro-batch stand for one that was computed, where it has a tree."""
    if (tree := inputs.get("tree")) is not None:
        computed = tree.tree.ids.shape[1]
        tally.add("tree/sharing", tree.n_tokens / computed, float(computed))


class PlannedLoop:
    """What goes in front of a Trainer class of TRL: planned micro-batches, exact metrics.

    The loss, the optimizer loop and checkpoints stay TRL's.

    Attributes:
        batching: How rows are put into micro-batches.
        tallies: Sums of metrics since the last line of the log, by mode.
        train_sampler: The training's micro-batches, once it has begun.
    """

    batching: Batching
    tallies: dict[str, Tally]
    train_sampler: MicroBatchSampler | None = None
    equal_rows = False
    """Whether the loss is no mean over rows, so that micro-batches must have equally many."""

    def planned(self, rows: Any) -> list[PairTokens]:
        """Returns what the planner sees of a data set; to be overridden."""
        raise NotImplementedError

    def create_accelerator_and_postprocess(self) -> None:
        """Creates the accelerator as Trainer does."""
        super().create_accelerator_and_postprocess()
        keep_scores_in_float32(self.accelerator)

    def train_plan(self) -> PairPlan:
        """Returns which training rows travel together, in every epoch; the same on every process."""
        args, batching, world = self.args, self.batching, self.accelerator.num_processes
        own_size = args.per_device_train_batch_size * args.gradient_accumulation_steps * world
        shape = Shape(
            batching.global_batch or own_size,
            world,
            args.gradient_accumulation_steps,
            by_tokens=batching.tokens is not None,
            equal_pairs=self.equal_rows,
        )
        return PairPlan(
            self.planned(self.train_dataset),
            shape,
            seed=args.seed if args.data_seed is None else args.data_seed,
            by_group=batching.group_by_prompt,
            equal_groups=batching.equal_prompts,
            chunk_tokens=batching.tokens,
        )

    def get_train_dataloader(self) -> DataLoader:
        """Returns this process's part of the plan."""
        self.train_sampler = MicroBatchSampler(self.train_plan())
        return self._loader(self.train_dataset, self.train_sampler)

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader:
        """Returns this process's part of an evaluation: prompt by prompt, nothing twice."""
        if isinstance(eval_dataset, str):
            eval_dataset = self.eval_dataset[eval_dataset]
        rows = self.eval_dataset if eval_dataset is None else eval_dataset
        return self.get_test_dataloader(rows)

    def get_test_dataloader(self, test_dataset: Any) -> DataLoader:
        """Returns this process's part of a prediction, as of an evaluation."""
        plan = self._in_order(test_dataset, self.args.per_device_eval_batch_size)
        return self._loader(test_dataset, MicroBatchSampler(plan))

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
        """Evaluates; what an earlier prediction left in the metrics, which are not logged, is dropped."""
        self.tallies.pop("eval", None)
        return super().evaluation_loop(*args, **kwargs)

    def _prepare_input(self, data: Any) -> Any:
        """Moves a batch; with DeepSpeed in bfloat16 Trainer would round the reference's log-probs, by half a nat."""
        if isinstance(data, Tensor) and data.is_floating_point():
            return data.to(self.args.device)
        return super()._prepare_input(data)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Logs exact means over everything since the last line, reduced over the processes once."""
        mode = "train" if self.model.training else "eval"
        tally = self.tallies.pop(mode, None)
        if tally is not None:
            means, counts = tally.means(functools.partial(self.accelerator.reduce, reduction="sum"))
            if mode == "train":
                self._total_train_tokens += int(counts["tokens"])
            loss = means.pop("loss", None)
            if mode == "eval":  # Trainer averaged over micro-batches, of unequal sizes
                logs.update({key: loss for key in logs if key.endswith("_loss")})
            del means["tokens"]
            means["num_tokens"] = self._total_train_tokens
            self._metrics[mode].update({key: [value] for key, value in means.items()})
        super().log(logs, start_time)

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        # In an epoch that is resumed inside, Trainer's wrappers hide the sampler from its own set_epoch.
        if self.train_sampler is not None:  # somebody else's loader has another one
            self.train_sampler.set_epoch(kwargs["epoch"])
        super()._run_epoch(*args, **kwargs)

    @contextmanager
    def _metrics_kept_here(self) -> Iterator[dict[str, list[Any]]]:
        """Lets TRL compute one micro-batch's metrics without a collective and without waiting for the device."""
        kept = self._metrics, self.accelerator, self._total_train_tokens
        local: dict[str, list[Any]] = defaultdict(list)
        self._metrics, self.accelerator = defaultdict(lambda: local), WithoutGather(self.accelerator)
        try:
            yield local
        finally:
            self._metrics, self.accelerator, self._total_train_tokens = kept

    def _in_order(self, rows: Any, batch_size: int) -> PairPlan:
        world = self.accelerator.num_processes
        return PairPlan(self.planned(rows), Shape(batch_size * world, world, 1, by_tokens=False), seed=None)

    def _loader(self, rows: Any, sampler: MicroBatchSampler) -> DataLoader:
        args = self.args
        self.accelerator.even_batches = False  # the plan is even; Accelerate would repeat pairs
        loader = DataLoader(
            PlannedRows(rows),
            batch_sampler=sampler,
            collate_fn=self.data_collator,
            num_workers=args.dataloader_num_workers,
            pin_memory=args.dataloader_pin_memory,
            persistent_workers=args.dataloader_persistent_workers,
        )
        return self.accelerator.prepare(loader)
