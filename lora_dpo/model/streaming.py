"""Models whose weights stay in their files: a module reads its own when it is called, and forgets them afterwards.

Memory then holds the largest module instead of the model, and the same modules can be run on other weights.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import reduce
from pathlib import Path
from typing import Any, TypeVar

import torch
from accelerate.hooks import remove_hook_from_submodules
from accelerate.utils import OffloadedWeightsLoader
from peft.tuners.lora import LoraLayer
from torch import Tensor
from torch.nn import Module, Parameter
from transformers import PreTrainedModel

from lora_dpo.errors import UserError
from lora_dpo.model.base import load_on_disk, resolve
from lora_dpo.model.shards import float_dtypes
from lora_dpo.recipe.schema import ModelSection

T = TypeVar("T", bound=Module)

_PEFT_PREFIX = "base_model.model."
_PEFT_WRAPPERS = (".base_layer.", ".original_module.")


def open_model(section: ModelSection, offload: Path, folder: Path | None = None) -> tuple[PreTrainedModel, Files]:
    """Opens a model without its weights, which `lent` lends it.

    Args:
        section: The model, in a local folder or a GGUF file.
        offload: Folder for those weights that Transformers changes while it loads them, such as fused experts.
        folder: Where the weights are, if they are another model's of the same configuration.

    Returns:
        The model, on the GPU where there is one, whose parameters are placeholders that take no memory; and its
        weights in float32 by their names, read at each access.

    Raises:
        UserError: The model cannot be found or read, or lacks weights.
    """
    folder = folder or Path(resolve(section))
    model = load_on_disk(section, folder, offload, _widest(folder)).eval()
    weights = _loader(model)
    there = set(weights)  # which to ask for a name would read its weight
    if missing := [name for name, _ in model.named_parameters() if name not in there]:
        raise UserError(f"The model {section.name} has no {missing[0]}.", fix="Download or save it again.")
    remove_hook_from_submodules(model)
    del model.hf_device_map  # PEFT would hook the model again
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    for module in model.modules():
        for name, parameter in _direct(module):
            # PEFT takes no parameter on `meta`: these are zeros that share one number.
            module._parameters[name] = _frozen(torch.zeros((), device=device).expand(parameter.shape))
        for name, buffer in module.named_buffers(recurse=False):
            module._buffers[name] = buffer.to(device)
    return model, Files(weights)


@contextmanager
def lent(model: T, weights: Mapping[str, Tensor]) -> Iterator[T]:
    """Yields a model whose modules each read their weights when they are called, and forget them afterwards.

    A LoRA layer reads those of the layer that it wraps, since DoRA looks at them itself.

    Args:
        model: What `open_model` returned, with adapters of PEFT on it or without.
        weights: By the names that the parameters have without adapters.
    """
    layers = {module.get_base_layer(): module for module in model.modules() if isinstance(module, LoraLayer)}
    handles = []
    for path, module in model.named_modules():
        names = {own: base_name(f"{path}.{own}".removeprefix(".")) for own, _ in _direct(module)}
        loan = _Loan(module, {own: name for own, name in names.items() if name in weights}, weights)
        caller = layers.get(module, module)
        handles.append(caller.register_forward_pre_hook(loan.begin))
        handles.append(caller.register_forward_hook(loan.end, always_call=True))
    try:
        yield model
    finally:
        for handle in handles:
            handle.remove()


def base_name(name: str) -> str:
    """Returns the name that a parameter below adapters of PEFT has without them."""
    for wrapper in _PEFT_WRAPPERS:
        name = name.replace(wrapper, ".")
    return name.removeprefix(_PEFT_PREFIX)


class Changed(Mapping[str, Tensor]):
    """Weights that are changed as they are read.

    Args:
        weights: By name.
        change: Returns a weight's new value, from its name and its old one.
    """

    def __init__(self, weights: Mapping[str, Tensor], change: Callable[[str, Tensor], Tensor]) -> None:
        self._weights, self._change = weights, change
        self._names = dict.fromkeys(weights)

    def __getitem__(self, name: str) -> Tensor:
        return self._change(name, self._weights[name])

    def __contains__(self, name: object) -> bool:
        return name in self._names  # a mapping's own would read the weight

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


class Files(Changed):
    """Weights in float32, as they are read from their files.

    Attributes:
        index: The file of each weight, and its name there.
    """

    def __init__(self, weights: OffloadedWeightsLoader) -> None:
        super().__init__(weights, lambda _, weight: weight.float())
        self.index: dict[str, dict[str, str]] = weights.index


class _Loan:
    """The weights of one module, there from the beginning of a call to its end."""

    def __init__(self, module: Module, names: Mapping[str, str], weights: Mapping[str, Tensor]) -> None:
        self._module, self._names, self._weights = module, names, weights
        self._placeholders = {own: module._parameters[own] for own in names}

    def begin(self, *_: Any) -> None:
        for own, name in self._names.items():
            self._module._parameters[own] = _frozen(self._weights[name].to(self._placeholders[own].device))

    def end(self, *_: Any) -> None:
        self._module._parameters.update(self._placeholders)


def _widest(folder: Path) -> torch.dtype:
    """Returns a precision that holds all weights of a folder as they are."""
    found = [dtype for file in folder.glob("*.safetensors") for dtype in float_dtypes(file).values()]
    return reduce(torch.promote_types, found) if found else torch.float32


def _frozen(tensor: Tensor) -> Parameter:
    return Parameter(tensor, requires_grad=False)


def _direct(module: Module) -> list[tuple[str, Parameter]]:
    return list(module.named_parameters(recurse=False, remove_duplicate=False))


def _loader(model: Module) -> OffloadedWeightsLoader:
    """Returns what Accelerate's hooks read the weights with."""
    hooks = (getattr(module, "_hf_hook", None) for module in model.modules())
    maps = (hook.weights_map for hook in hooks if getattr(hook, "weights_map", None) is not None)
    return next(maps).dataset
