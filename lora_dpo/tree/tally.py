"""Running means over micro-batches of unequal size, reduced over the processes once."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


class Tally:
    """Sums and counts by name, kept on the device: adding waits for nothing."""

    def __init__(self) -> None:
        self._totals: dict[str, Tensor] = {}

    def add(self, name: str, mean: Tensor | float, count: Tensor | float) -> None:
        """Adds the mean of `count` things; a count of 0 adds nothing."""
        device = next((part.device for part in (mean, count) if isinstance(part, Tensor)), None)
        mean, count = (torch.as_tensor(part, dtype=torch.float64, device=device) for part in (mean, count))
        # The mean of nothing is often 0 / 0. Detached: a sum would keep the graphs of all that was added to it.
        total = torch.stack([torch.where(count > 0, mean * count, 0.0), count]).detach()
        self._totals[name] = self._totals[name].to(total.device) + total if name in self._totals else total

    def totals(self) -> dict[str, Tensor]:
        """Returns the sum and the count of each name, (2,) float64 on the CPU, as `add_totals` takes them."""
        return {name: total.cpu() for name, total in self._totals.items()}

    def add_totals(self, totals: dict[str, Tensor]) -> None:
        """Adds what another tally, or an earlier process, has counted."""
        for name, total in totals.items():
            known = self._totals.get(name)
            self._totals[name] = total.clone() if known is None else known + total.to(known.device)

    def means(self, reduce: Callable[[Tensor], Tensor]) -> tuple[dict[str, float], dict[str, float]]:
        """Returns means and counts over all processes; every process must have added the same names.

        Args:
            reduce: Sums a tensor over the processes.
        """
        if not self._totals:
            return {}, {}
        device = next(iter(self._totals.values())).device
        totals = reduce(torch.stack([total.to(device) for total in self._totals.values()])).tolist()
        means = {
            name: total / count if count else 0.0 for name, (total, count) in zip(self._totals, totals, strict=True)
        }
        return means, {name: count for name, (_, count) in zip(self._totals, totals, strict=True)}
