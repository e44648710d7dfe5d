"""Adapters on a model that `open_model` opened: what they make of each weight, and what the model then computes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from peft import LoraConfig, PeftConfig, PeftModel, PeftType
from peft.tuners.lora import LoraLayer
from peft.tuners.lora.layer import Linear
from peft.tuners.lora.variants import DoraLinearVariant
from peft.utils import ModulesToSaveWrapper
from torch import Tensor
from torch.nn import Parameter
from transformers import PreTrainedModel

from lora_dpo.errors import UserError
from lora_dpo.model.adapter import load_adapter, read_tensors
from lora_dpo.model.streaming import Changed, base_name, lent

_LEAVES_THE_BASE = (True, False, "gaussian", "eva", "orthogonal")
"""`init_lora_weights` that change nothing in the base model."""


@dataclass(frozen=True, slots=True)
class Adapted:
    """Adapters, each of which is put upon the model that those before it make.

    Attributes:
        model: The model with the adapters.
        labels: PEFT's names of the adapters, in order.
        layers: The LoRA layer of each weight that any adapter changes.
        replaced: The weights that adapters bring along whole (`modules_to_save`), the last adapter's.
    """

    model: PeftModel
    labels: list[str]
    layers: dict[str, LoraLayer]
    replaced: dict[str, Tensor]

    def merged(self, name: str, weight: Tensor, labels: Sequence[str] | None = None) -> Tensor:
        """Returns what adapters make of a weight; PEFT computes it.

        Args:
            name: The weight's name in the model without adapters.
            weight: Its value, in float32; may be overwritten.
            labels: Which of the adapters, in order; None is all of them.

        Returns:
            The new value, in float32 on the CPU.
        """
        if name in self.replaced:
            return self.replaced[name].float().cpu()
        layer = self.layers.get(name)
        for label in self.labels if labels is None else labels:
            if layer is not None and label in layer.lora_A:
                weight = _merged(layer, label, weight)
        return weight.cpu()

    @contextmanager
    def trained(self, weights: Mapping[str, Tensor]) -> Iterator[PeftModel]:
        """Yields the model as it was trained: the weights stay as they are, and PEFT adds the adapters' outputs.

        DoRA looks at the weights below it, so where it is not the first adapter, those before it are merged.

        Args:
            weights: The base's.
        """
        first = max((n for n, label in enumerate(self.labels) if self._is_dora(label)), default=0)
        below = Changed(weights, lambda name, weight: self.merged(name, weight, self.labels[:first]))
        self.model.base_model.set_adapter(self.labels[first:], inference_mode=True)
        with lent(self.model, below) as model:
            yield model

    @contextmanager
    def untrained(self, weights: Mapping[str, Tensor]) -> Iterator[PeftModel]:
        """Yields the model with all adapters off.

        Args:
            weights: The base's.
        """
        with lent(self.model, weights) as model, model.disable_adapter():
            yield model

    def _is_dora(self, label: str) -> bool:
        return any(label in layer.lora_variant for layer in self.layers.values())


def adapt(model: PreTrainedModel, folders: Sequence[Path]) -> Adapted:
    """Puts adapters on a model that `open_model` opened.

    Args:
        model: The model; its modules are changed.
        folders: The adapters' folders, in order.

    Raises:
        UserError: An adapter cannot be read, does not fit, is damaged, or is of a kind that cannot be merged.
    """
    labels = [f"adapter_{number}" for number in range(len(folders))]  # of which no layer's name has a part
    adapted: PreTrainedModel | PeftModel = model
    for label, folder in zip(labels, folders, strict=True):
        _check_kind(folder)
        _check_tensors(folder, model)
        adapted = load_adapter(str(folder), adapted, label=label)
    layers: dict[str, LoraLayer] = {}
    replaced: dict[str, Tensor] = {}
    for path, module in adapted.named_modules():
        if isinstance(module, LoraLayer):
            _check_layer(module, path)
            layers[base_name(f"{path}.weight")] = module
        elif isinstance(module, ModulesToSaveWrapper):
            for saved in module.modules_to_save.values():
                names = {base_name(f"{path}.{own}"): tensor for own, tensor in saved.named_parameters()}
                _check_free(replaced, names)
                replaced |= names
    _check_free(layers, replaced)
    _check_ties(model, [*layers, *replaced])
    return Adapted(adapted.eval(), labels, layers, replaced)


def _merged(layer: LoraLayer, label: str, weight: Tensor) -> Tensor:
    base = layer.get_base_layer()
    placeholder = base.weight
    base.weight = Parameter(weight.to(placeholder.device), requires_grad=False)
    try:
        layer.merge(adapter_names=[label])
        return base.weight.data
    finally:
        base.weight = placeholder
        layer.merged_adapters.clear()  # the next adapter meets its result as if it were the base
        layer._caches.clear()  # DoRA keeps what it would need to undo it


def _check_kind(folder: Path) -> None:
    config = PeftConfig.from_pretrained(str(folder))
    odd = None
    if not isinstance(config, LoraConfig) or config.peft_type != PeftType.LORA:
        odd = f"is of the kind {config.peft_type}"
    elif config.init_lora_weights not in _LEAVES_THE_BASE:
        odd = f"began with init_lora_weights={config.init_lora_weights!r}, which changed the base model as well"
    elif config.lora_bias or config.bias != "none":
        odd = "trains biases"
    elif config.trainable_token_indices is not None:
        odd = "trains single tokens (trainable_token_indices)"
    if odd is not None:
        raise _not_mergeable(f"The adapter {folder} {odd}")


def _check_tensors(folder: Path, model: PreTrainedModel) -> None:
    tensors = read_tensors(folder)
    if broken := [name for name, tensor in tensors.items() if not tensor.isfinite().all()]:
        raise UserError(
            f"The adapter {folder} has values that are no numbers (NaN or infinite).",
            why=f"{len(broken)} of its {len(tensors)} tensors, such as {broken[0]}.",
            fix="Take an earlier checkpoint, or train again with a lower learning rate.",
        )
    shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
    for name, tensor in tensors.items():
        own = base_name(name)
        if "lora_" not in name and shapes.get(own, tensor.shape) != tensor.shape:
            raise UserError(
                f"The adapter {folder} brings {own} with {len(tensor)} rows; the base model has {shapes[own][0]}.",
                why="Tokens were added before the training, so the adapter fits a base with as many.",
                fix="Make that base: model.resize_token_embeddings(N), save_pretrained(FOLDER) with the adapter's "
                "tokenizer; then merge with --base FOLDER.",
            )


def _check_layer(layer: LoraLayer, path: str) -> None:
    variants = {type(variant).__name__ for variant in layer.lora_variant.values()} - {DoraLinearVariant.__name__}
    if type(layer) is not Linear or variants:
        raise _not_mergeable(f"An adapter's layer {base_name(path)} is a {', '.join(variants) or type(layer).__name__}")


def _check_free(taken: Mapping[str, object], names: Mapping[str, object]) -> None:
    if both := sorted(taken.keys() & names.keys()):
        raise _not_mergeable(f"Two of the adapters each have a {both[0]} of their own")


def _check_ties(model: PreTrainedModel, names: Sequence[str]) -> None:
    ties = model.all_tied_weights_keys
    if tied := sorted({*ties.keys(), *ties.values()} & set(names)):
        raise _not_mergeable(f"An adapter changes {tied[0]}, which this model shares between its input and its output")


def _not_mergeable(what: str) -> UserError:
    return UserError(
        f"{what}, which cannot be merged shard by shard.",
        why="What can: LoRA, rsLoRA and DoRA on linear layers, and whole layers (modules_to_save) that nothing shares.",
        fix="Leave that adapter out, or train it again on other layers.",
    )
