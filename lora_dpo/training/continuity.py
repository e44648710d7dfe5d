"""What a running training knows and Trainer's checkpoints leave out: sums that the next line of the log needs."""

from __future__ import annotations

from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from lora_dpo.tree.planned import PlannedLoop
from lora_dpo.tree.tally import Tally

_PATTERN = "continuity_{}.pt"


def save_continuity(trainer: PlannedLoop, folder: Path, **more: Any) -> None:
    """Writes this process's part beside Trainer's files.

    Args:
        trainer: A trainer inside its loop.
        folder: The checkpoint's folder.
        more: Further numbers that the next process needs.
    """
    part = {
        "tr_loss": trainer._tr_loss.cpu(),
        "total_loss": trainer._total_loss_scalar,
        "last_logged": trainer._globalstep_last_logged,
        "tokens": trainer._total_train_tokens,
        "metrics": {mode: dict(values) for mode, values in trainer._metrics.items()},
        "tallies": {mode: tally.totals() for mode, tally in trainer.tallies.items()},
        **more,
    }
    torch.save(part, folder / _PATTERN.format(trainer.args.process_index))


def load_continuity(trainer: PlannedLoop, folder: Path, world_size: int) -> dict[str, Any]:
    """Gives the trainer back what it knew; call it when the loop has begun.

    Written by another number of processes, the sums of all of them go to the first one.

    Args:
        trainer: The trainer.
        folder: The checkpoint's folder.
        world_size: How many processes wrote it.

    Returns:
        This process's part.
    """
    here = trainer.args.process_index
    ranks = [here] if world_size == trainer.args.world_size else range(world_size)
    parts = [torch.load(folder / _PATTERN.format(rank), weights_only=True) for rank in ranks]
    trainer._tr_loss = torch.stack([part["tr_loss"] for part in parts]).mean(0).to(trainer.args.device)
    trainer._total_loss_scalar = fmean(part["total_loss"] for part in parts)
    trainer._globalstep_last_logged = parts[0]["last_logged"]
    trainer._total_train_tokens = parts[0]["tokens"]
    for mode, values in parts[0]["metrics"].items():
        trainer._metrics[mode].update(values)
    gets_all = here == 0 or len(parts) == 1
    trainer.tallies = {}
    for part in parts:
        for mode, totals in part["tallies"].items():  # the names must be the same everywhere
            given = totals if gets_all else {name: torch.zeros_like(total) for name, total in totals.items()}
            trainer.tallies.setdefault(mode, Tally()).add_totals(given)
    return parts[0]
