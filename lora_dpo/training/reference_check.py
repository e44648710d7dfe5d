"""Are the reference log-probs that were kept those that the reference has? A batch of them is computed again."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from lora_dpo.errors import UserError
from lora_dpo.tree.hf import PlannedTrainer

_PAIRS = 4
"""Pairs that each process computes again."""
_TOLERANCE = {torch.float32: 1e-3, torch.float16: 2e-2, torch.bfloat16: 1.5e-1}
"""Nats that a token's log-prob may be off. Those of a sequence add up as independent errors do: by the square root."""


def check_against_live(trainer: PlannedTrainer, dtype: torch.dtype, folders: Sequence[Path]) -> None:
    """Stops a run whose reference log-probs are of another model.

    Every process computes a few pairs from all over the training data again, by TRL's own method.

    Args:
        trainer: A trainer whose data has its columns of reference log-probs.
        dtype: Precision of the forward pass, which sets the tolerance.
        folders: Where the log-probs lie.

    Raises:
        UserError: They differ by more than rounding.
    """
    world, rank = trainer.accelerator.num_processes, trainer.accelerator.process_index
    rows = np.linspace(0, len(trainer.train_dataset) - 1, _PAIRS * world).astype(int)[rank::world]
    kept, live, tokens = trainer.live_reference(rows.tolist())
    off = torch.where((kept == live) | (kept.isnan() & live.isnan()), 0.0, (kept - live).abs())
    tolerance = _TOLERANCE[dtype] * tokens.clamp(min=1).sqrt()
    worst = (off / tolerance).flatten().argmax()
    found = torch.stack([off.flatten()[worst], tolerance.flatten()[worst]])[None]
    every = trainer.accelerator.gather(found).tolist()  # every process stops, with one reason
    nats, allowed = max(every, key=lambda each: each[0] / each[1])
    if not nats <= allowed:  # true for NaN as well
        places = " and ".join(map(str, folders))
        raise UserError(
            f"The reference log-probs in {places} are not this reference's: one is {nats:.4g} nats off "
            f"(+-{allowed:.2g} is rounding).",
            why=f"{len(rows) * world} pairs were computed again. Another version of a library may compute otherwise, "
            "or files were changed.",
            fix=f"Nothing was trained. Delete {places}, and they are computed anew; or use dpo.reference=live.",
        )
