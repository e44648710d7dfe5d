"""Stand-ins that let TRL's loss method run as it is: without collectives, without waiting, with weighted means."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor


class Recorder:
    """A model that keeps the log-probs of its last call.

    Attributes:
        log_probs: Of every token but the first, shape (sequences, T - 1).
    """

    log_probs: Tensor

    def __init__(self, model: Any) -> None:
        self._model = model

    def __call__(self, **kwargs: Any) -> Any:
        """Calls the model."""
        outputs = self._model(**kwargs)
        # A prompt-learning adapter puts the outputs of its virtual tokens first.
        self.log_probs = outputs.log_probs[:, 1 - kwargs["input_ids"].shape[1] :]
        return outputs


class WithoutGather:
    """An accelerator whose gathers return what this process has, as numbers that are not waited for."""

    def __init__(self, accelerator: Any) -> None:
        self._accelerator = accelerator

    def __getattr__(self, name: str) -> Any:
        return getattr(self._accelerator, name)

    def gather(self, value: Tensor) -> Tensor:
        """Returns the value of this process alone."""
        return value.detach().as_subclass(_Unread)

    gather_for_metrics = gather


class _Unread(Tensor):
    """A tensor whose `item()` stays on the device, and which counts as true: TRL asks only whether there are tokens."""

    def item(self) -> _Unread:
        return self

    def __bool__(self) -> bool:
        return True


class _WeightedMean(Tensor):
    """A vector over pairs whose `mean()` is the weighted sum that the plan asks for."""

    weights: Tensor

    def mean(self, *args: Any, **kwargs: Any) -> Tensor:
        if args or kwargs or self.ndim != 1:
            return super().mean(*args, **kwargs)
        return (self.as_subclass(Tensor) * type(self).weights).sum()


def weighting(model: Any, weights: Tensor) -> Callable[..., Any]:
    """Returns the model with log-probs from which TRL's per-pair losses inherit a weighted mean."""
    kind = type("_WeightedMean", (_WeightedMean,), {"weights": weights})

    def forward(**kwargs: Any) -> Any:
        outputs = model(**kwargs)
        outputs.log_probs = outputs.log_probs.as_subclass(kind)
        return outputs

    return forward
