"""A loss or gradient that is no number: found at the step that made it, and traced to the pairs."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor


class FiniteCheck:
    """Remembers which of a step's micro-batches gave a loss that is no number, without waiting for the device."""

    def __init__(self) -> None:
        self._losses: list[Tensor] = []
        self._gradient: Tensor | None = None

    @property
    def seen(self) -> int:
        """Micro-batches of this step that were looked at."""
        return len(self._losses)

    def see_loss(self, loss: Tensor) -> None:
        """Takes note of a micro-batch's loss."""
        self._losses.append(loss.detach().isfinite().all())

    def see_gradient_norm(self, norm: Tensor | float) -> None:
        """Takes note of the step's gradient norm."""
        self._gradient = torch.as_tensor(norm).isfinite().all()

    def end_step(self) -> tuple[list[int], bool]:
        """Returns the places of the bad micro-batches in this process's step, and whether its gradient is bad."""
        losses = torch.stack(self._losses).tolist() if self._losses else []
        gradient = self._gradient is None or bool(self._gradient)
        self._losses, self._gradient = [], None
        return [place for place, finite in enumerate(losses) if not finite], not gradient


class GradientGate:
    """Lets a micro-batch's gradient through, or none of it. Its hooks run before any reduction sees the gradient.

    Args:
        parameters: The trained parameters.
    """

    def __init__(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        self.closed = False
        for parameter in parameters:
            parameter.register_hook(self._pass)

    def _pass(self, gradient: Tensor) -> Tensor:
        return torch.zeros_like(gradient) if self.closed else gradient
