"""The merged weights, shard by shard."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from lora_dpo.console import tracked
from lora_dpo.errors import UserError
from lora_dpo.merging.folder import write_index
from lora_dpo.merging.ingredients import Ingredients, Onto
from lora_dpo.model.shards import float_dtypes, rewrite


@dataclass(frozen=True, slots=True)
class Written:
    """What was written.

    Attributes:
        files: The files' hashes.
        changed: Tensors that merging changed.
        copied: Tensors that it left as they are, but for their precision.
    """

    files: dict[str, str]
    changed: int
    copied: int


def write_weights(
    ingredients: Ingredients, onto: Onto, shards: Sequence[Path], folder: Path, dtype: torch.dtype | None
) -> Written:
    """Writes the merged weights, in files as the base has them.

    Args:
        ingredients: Base and adapters.
        onto: What the adapters are merged into.
        shards: The base's files.
        folder: Where to.
        dtype: Precision of the weights; None leaves each in the base's.

    Raises:
        UserError: A value is too large for the precision.
    """
    places = ingredients.places(onto)
    hashes, homes, total = {}, {}, 0
    for shard in tracked(shards, "merging"):
        own = float_dtypes(shard)

        def change(name: str, tensor: Tensor, shard: Path = shard, own: dict[str, torch.dtype] = own) -> Tensor:
            parameter = places.get((str(shard), name))
            if parameter is None:
                return tensor
            merged = ingredients.merged(onto, parameter, tensor.float()).to(dtype or own[name])
            if not merged.isfinite().all():
                raise UserError(
                    f"{parameter} cannot be merged in {str(merged.dtype).removeprefix('torch.')}.",
                    why="Some of its values would be infinite.",
                    fix="Use --dtype bf16 or fp32.",
                )
            return merged

        done = rewrite(shard, folder / shard.name, change, dtype)
        hashes[shard.name] = done.sha256
        homes |= dict.fromkeys(done.names, shard.name)
        total += done.tensor_bytes
    if len(shards) > 1:
        write_index(folder, homes, total)
    return Written(hashes, len(places), len(homes) - len(places))
