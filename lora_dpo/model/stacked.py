"""An adapter put into the weights in memory, a fresh one trained on top, and both saved as one that fits the base.

With W' = W + s_1 B_1 A_1 and a second update s_2 B_2 A_2 on W', the sum of the two updates is B A with
A = [A_1; A_2] and B = [s_1 B_1, s_2 B_2]: LoRA of rank r_1 + r_2 and scale 1, exactly.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from copy import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from peft import LoraConfig, PeftModel
from peft.tuners.lora import LoraLayer
from torch import Tensor

from lora_dpo.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_TRAINED = "default"
_PREFIX = "base_model.model."


@dataclass(frozen=True, slots=True)
class Update:
    """What an adapter adds to a layer's weight: `b @ a`, the scale included.

    Attributes:
        a: Shape (r, in).
        b: Shape (out, r).
    """

    a: Tensor
    b: Tensor


def merge_into_weights(model: PeftModel, name: str) -> tuple[PreTrainedModel, dict[str, Update]]:
    """Adds an adapter to the weights that it is on, and takes it off.

    The sum is formed in float32 and rounded once, to the weights' own precision.

    Args:
        model: The base model with the adapter.
        name: What the user calls the adapter.

    Returns:
        The base model with other weights, and what was added to each layer, in float32 on the CPU.

    Raises:
        UserError: The adapter is more than a sum of low-rank updates.
    """
    _check_is_sum(model.peft_config[_TRAINED], name)
    updates = {}
    for place, layer in _lora_layers(model):
        update = _update_of(layer)
        updates[place] = update
        weight = layer.get_base_layer().weight
        with _whole(weight), torch.no_grad():
            added = (update.b @ update.a).to(weight.device)
            added = added.T if layer.fan_in_fan_out else added  # GPT-2 keeps its weights the other way round
            weight.copy_((weight.float() + added).to(weight.dtype))
    return model.unload(), updates


def stacked(
    below: Mapping[str, Update], state: Mapping[str, Tensor], scaling: Mapping[str, float]
) -> dict[str, Tensor]:
    """Returns the tensors of the adapter that is both updates, by their names in the file.

    Args:
        below: What was put into the weights, by layer.
        state: The trained adapter's tensors, by their names in the file.
        scaling: The trained adapter's scale, by layer.
    """
    tensors: dict[str, Tensor] = {}
    for place in dict.fromkeys([*below, *scaling]):
        parts = [below[place]] if place in below else []
        if place in scaling:
            a, b = (state[name].float() for name in _names(place))
            parts.append(Update(a, b * scaling[place]))
        name_a, name_b = _names(place)
        tensors[name_a] = torch.cat([part.a for part in parts]).contiguous()
        tensors[name_b] = torch.cat([part.b for part in parts], dim=1).contiguous()
    return tensors


def stacked_squares(
    below: Mapping[str, Update], trained: Mapping[str, float], scaling: Mapping[str, float]
) -> dict[str, float]:
    """Returns the squared norm that each tensor of `stacked` must have.

    Args:
        below: What was put into the weights, by layer.
        trained: Squared norms of the trained adapter's tensors, by their names in the file.
        scaling: The trained adapter's scale, by layer.
    """
    squares: dict[str, float] = {}
    for place in dict.fromkeys([*below, *scaling]):
        for name, side, scale in zip(_names(place), ("a", "b"), (1.0, scaling.get(place, 1.0)), strict=True):
            own = getattr(below[place], side).double().square().sum().item() if place in below else 0.0
            squares[name] = own + scale**2 * trained.get(name, 0.0)
    return squares


def stacked_config(
    trained: LoraConfig, below: Mapping[str, Update], scaling: Mapping[str, float], tensors: Mapping[str, Tensor]
) -> LoraConfig:
    """Returns the configuration of the adapter that is both updates.

    Args:
        trained: Configuration of the trained adapter.
        below: What was put into the weights, by layer.
        scaling: The trained adapter's scale, by layer.
        tensors: What `stacked` returned.
    """
    ranks = {place: len(tensors[_names(place)[0]]) for place in dict.fromkeys([*below, *scaling])}
    config = copy(trained)
    config.r = config.lora_alpha = max(ranks.values())  # so the scale is 1: the true ones are in B
    config.rank_pattern = {place: rank for place, rank in ranks.items() if rank != config.r}
    config.alpha_pattern = dict(config.rank_pattern)
    config.use_rslora, config.inference_mode = False, True
    if below.keys() != scaling.keys():
        config.target_modules = set(ranks)
    return config


def scaling_of(model: PeftModel) -> dict[str, float]:
    """Returns the trained adapter's scale at each of its layers."""
    return {place: layer.scaling[_TRAINED] for place, layer in _lora_layers(model)}


def _names(place: str) -> tuple[str, str]:
    """Returns what a layer's two tensors are called in an adapter's file."""
    return f"{_PREFIX}{place}.lora_A.weight", f"{_PREFIX}{place}.lora_B.weight"


def _lora_layers(model: PeftModel) -> Iterable[tuple[str, Any]]:
    """Returns the layers that have the adapter, by their names in the base model."""
    for place, layer in model.get_base_model().named_modules():
        if isinstance(layer, LoraLayer) and _TRAINED in layer.lora_A:
            yield place, layer


def _update_of(layer: Any) -> Update:
    a, b = (side[_TRAINED].weight.detach().float().cpu().clone() for side in (layer.lora_A, layer.lora_B))
    return Update(a, b * layer.scaling[_TRAINED])


def _check_is_sum(config: Any, name: str) -> None:
    odd = [
        words
        for is_so, words in (
            (not isinstance(config, LoraConfig), "is not LoRA"),
            (getattr(config, "use_dora", False), "is DoRA, which also changes the weights' magnitudes"),
            (getattr(config, "modules_to_save", None), "holds whole layers (modules_to_save)"),
            (getattr(config, "bias", "none") != "none", "changes biases"),
            (getattr(config, "lora_bias", False), "has biases"),
            (getattr(config, "trainable_token_indices", None), "changes embeddings of tokens"),
            (getattr(config, "target_parameters", None), "is on parameters that belong to no linear layer"),
        )
        if is_so
    ]
    if odd:
        raise UserError(
            f"The adapter {name} {odd[0]}, so it cannot be saved as one adapter with another.",
            fix="Use adapter.init_mode=continue, which trains it further.",
        )


def _whole(weight: Tensor) -> AbstractContextManager[Any]:
    """Returns a context in which a weight that ZeRO-3 has divided is whole, and what is written to it is kept."""
    gathered: Callable[..., AbstractContextManager[Any]] = nullcontext
    if not hasattr(weight, "ds_id"):
        return gathered()
    from deepspeed import zero

    return zero.GatheredParameters([weight], modifier_rank=0)
