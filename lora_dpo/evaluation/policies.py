"""The model before and after training: one set of weights, the adapter off and on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import torch
from peft import PeftModel
from transformers import PreTrainedModel
from trl.trainer.utils import use_adapter


@dataclass(frozen=True, slots=True)
class Policies:
    """What is compared.

    Args:
        trained: The trained model, with its adapter if it has one.
        base: The model before, where the whole model was trained; None where switching the adapter off gives it.
        settle: Called before each kind of pass.
    """

    trained: PreTrainedModel | PeftModel
    base: PreTrainedModel | None = None
    settle: Callable[[], None] = lambda: None

    @contextmanager
    def before(self) -> Iterator[torch.nn.Module]:
        """Yields the reference: the adapter off, or the one that the training started from, where a copy is kept."""
        start = "ref" if isinstance(self.trained, PeftModel) and "ref" in self.trained.peft_config else None
        self.settle()
        adapter_off = nullcontext() if self.base is not None else use_adapter(self.trained, start)
        with _evaluating(self.base or self.trained) as model, adapter_off:
            yield model

    @contextmanager
    def after(self) -> Iterator[torch.nn.Module]:
        """Yields the trained model."""
        self.settle()
        with _evaluating(self.trained) as model:
            yield model


@contextmanager
def _evaluating(model: torch.nn.Module) -> Iterator[torch.nn.Module]:
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield model
    finally:
        model.train(was_training)
