"""What a merged model is made of, opened without being read: the base, its 4-bit image, and the adapters."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor
from torch.nn import Module

from lora_dpo.errors import UserError
from lora_dpo.merging.agreement import Opened
from lora_dpo.model.adapted import Adapted, adapt
from lora_dpo.model.four_bit import FourBit
from lora_dpo.model.shards import float_dtypes
from lora_dpo.model.streaming import Changed, Files, lent, open_model
from lora_dpo.recipe.schema import ModelSection

Onto = Literal["full", "quantized"]
"""What adapters are merged into: the base's weights as they are, or as 4 bits leave them."""


@dataclass(frozen=True, slots=True)
class Ingredients:
    """Base and adapters.

    Attributes:
        base: The base model; its name is a local folder.
        scratch: Folder for what is needed meanwhile.
        weights: The base's weights by parameter, in float32.
        adapted: The adapters on the base.
        four_bit: Takes weights to 4 bits and back; None where no adapter was trained upon such.
    """

    base: ModelSection
    scratch: Path
    weights: Files
    adapted: Adapted
    four_bit: FourBit | None

    @contextmanager
    def trained(self, onto: Onto) -> Iterator[Module]:
        """Yields the base with the adapters on it, as PEFT computes it."""
        with self.adapted.trained(self._base_weights(onto)) as model:
            yield model

    @contextmanager
    def untrained(self, onto: Onto) -> Iterator[Module]:
        """Yields the base with the adapters off."""
        with self.adapted.untrained(self._base_weights(onto)) as model:
            yield model

    def preview(self, onto: Onto, dtype: torch.dtype | None) -> Opened:
        """Opens the model that merging would give, before it is written.

        Args:
            onto: What the adapters are merged into.
            dtype: Precision of its weights; None is each one's own.
        """
        changed = self.changed(onto)
        own = self._own_dtypes() if dtype is None else dict.fromkeys(self.weights, dtype)

        def rounded(name: str, weight: Tensor) -> Tensor:
            value = self.merged(onto, name, weight) if name in changed else weight
            return value.to(own[name]).float()

        model, _ = open_model(self.base, self.scratch / "preview")
        return lambda: lent(model, Changed(self.weights, rounded))

    def reloaded(self, folder: Path) -> Opened:
        """Opens a merged model as Transformers reads it from its files.

        Args:
            folder: Where its weights are.
        """
        model, weights = open_model(self.base, self.scratch / "merged", folder)
        return lambda: lent(model, weights)

    def changed(self, onto: Onto) -> frozenset[str]:
        """Returns the parameters that merging changes."""
        quantised = self.four_bit.names if onto == "quantized" and self.four_bit is not None else frozenset()
        return quantised | self.adapted.layers.keys() | self.adapted.replaced.keys()

    def coarsest(self, onto: Onto) -> torch.dtype:
        """Returns the coarsest precision that a changed parameter has in its file."""
        own = self._own_dtypes()
        return max((own[name] for name in self.changed(onto)), key=lambda dtype: torch.finfo(dtype).eps)

    def merged(self, onto: Onto, name: str, weight: Tensor) -> Tensor:
        """Returns a parameter's merged value, in float32.

        Args:
            onto: What the adapters are merged into.
            name: The parameter.
            weight: The base's value, in float32; may be overwritten.
        """
        if onto == "quantized" and self.four_bit is not None:
            weight = self.four_bit(name, weight)
        return self.adapted.merged(name, weight)

    def places(self, onto: Onto) -> dict[tuple[str, str], str]:
        """Returns the parameters that merging changes by the file and the name in it that they are read from.

        Raises:
            UserError: One is in no file: Transformers makes it of several while it loads them.
        """
        found = {}
        for name in self.changed(onto):
            place = self.weights.index[name]
            if Path(place.get("safetensors_file", "")).parent != Path(self.base.name):
                raise UserError(
                    f"An adapter changes {name}, which is in no file of the base model.",
                    why="Transformers makes it of several tensors while it loads them (fused experts, as a rule).",
                    fix="Train the adapter on layers that are files' own, such as attention alone.",
                )
            found[place["safetensors_file"], place["weight_name"]] = name
        return found

    def _base_weights(self, onto: Onto) -> Mapping[str, Tensor]:
        return self.weights if onto == "full" or self.four_bit is None else Changed(self.weights, self.four_bit)

    def _own_dtypes(self) -> dict[str, torch.dtype]:
        """Returns the precision that each parameter has in its file."""
        index = self.weights.index
        files = {file: float_dtypes(Path(file)) for file in {place["safetensors_file"] for place in index.values()}}
        return {name: files[place["safetensors_file"]][place["weight_name"]] for name, place in index.items()}


def open_ingredients(
    base: ModelSection, adapters: Sequence[Path], scratch: Path, *, quantised_from: torch.dtype | None
) -> Ingredients:
    """Opens base and adapters.

    Args:
        base: The base model; its name is a local folder.
        adapters: The adapters' folders, in order.
        scratch: Folder for what is needed meanwhile; made.
        quantised_from: The precision that the base was in when it was taken to 4 bits; None where it was not.

    Raises:
        UserError: Something cannot be read, does not fit, or cannot be merged.
    """
    model, weights = open_model(base, scratch / "base")
    four_bit = None if quantised_from is None else FourBit(model, quantised_from, scratch / "four_bit")
    return Ingredients(base, scratch, weights, adapt(model, adapters), four_bit)
