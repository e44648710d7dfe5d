"""Saving what was trained, whole however it is divided, and reading it again to see that it is.

Under ZeRO-3 a rank holds a flat piece of each tensor, and a save that forgets to gather leaves an adapter of 40 bytes
(https://github.com/huggingface/trl/issues/4416). So the norms that the file must have are summed over the pieces
themselves, not over what was gathered.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from accelerate import PartialState
from peft import PeftModel, get_peft_model_state_dict
from peft.utils import SAFETENSORS_WEIGHTS_NAME
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lora_dpo.model.stacked import Update, scaling_of, stacked, stacked_config, stacked_squares

if TYPE_CHECKING:
    from transformers import Trainer

_TRAINED = "default"


@dataclass(frozen=True, slots=True)
class Measure:
    """What a tensor in a file is recognised by."""

    shape: tuple[int, ...]
    norm: float

    def __str__(self) -> str:
        return f"{list(self.shape)} with norm {self.norm:.6g}"


def save_policy(
    trainer: Trainer, folder: Path, tokenizer: PreTrainedTokenizerBase, below: Mapping[str, Update] | None = None
) -> None:
    """Writes the trained adapter, or the whole model, with the tokenizer, and compares the file with the live model.

    Every rank must call it: under ZeRO-3 and FSDP all of them take part, and rank 0 writes.

    Args:
        trainer: A trainer, after or during the training.
        folder: Where to; created.
        tokenizer: What is written beside it.
        below: What was put into the weights before the training; it is saved as part of the adapter.

    Raises:
        RuntimeError: The file does not hold what was trained.
    """
    model = trainer.accelerator.unwrap_model(trainer.model)
    expected, state = measure(model), _gather(trained_tensors(model))
    if not trainer.is_world_process_zero():
        return
    if below is not None:
        expected = _save_stacked(model, folder, below, state, expected)
        tokenizer.save_pretrained(folder)
        check_saved(folder, expected)
        return
    # A continued adapter has a frozen copy of itself beside it, named `ref`.
    only_trained = {"selected_adapters": [_TRAINED]} if isinstance(model, PeftModel) else {}
    model.save_pretrained(folder, state_dict=state, **only_trained)
    tokenizer.save_pretrained(folder)
    check_saved(folder, expected)


def _save_stacked(
    model: PeftModel,
    folder: Path,
    below: Mapping[str, Update],
    state: Mapping[str, Tensor],
    trained: Mapping[str, Measure],
) -> dict[str, Measure]:
    """Writes one adapter that is both what was put into the weights and what was trained; returns what it must be."""
    names, scaling = names_in_file(model, state), scaling_of(model)
    tensors = stacked(below, {names[name]: tensor for name, tensor in state.items()}, scaling)
    config = stacked_config(model.peft_config[_TRAINED], below, scaling, tensors)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / SAFETENSORS_WEIGHTS_NAME, metadata={"format": "pt"})
    config.save_pretrained(str(folder))
    squares = stacked_squares(below, {name: part.norm**2 for name, part in trained.items()}, scaling)
    return {name: Measure(tuple(tensor.shape), math.sqrt(squares[name])) for name, tensor in tensors.items()}


def measure(model: PreTrainedModel | PeftModel) -> dict[str, Measure]:
    """Measures the trained tensors where they are, in pieces or whole. Every rank must call it.

    Args:
        model: The unwrapped model; of one with adapters, only `default` is measured.

    Returns:
        Shape and norm of each tensor, by its name in the file.
    """
    tensors = trained_tensors(model)
    device = PartialState().device
    squares = torch.stack([_square_here(tensor).to(device) for tensor in tensors.values()])
    if torch.distributed.is_initialized():
        divided = torch.tensor([_is_divided(tensor) for tensor in tensors.values()], device=device)
        summed = squares * divided
        torch.distributed.all_reduce(summed)
        squares = torch.where(divided, summed, squares)
    names = names_in_file(model, tensors)
    norms = squares.sqrt().tolist()
    return {names[name]: Measure(_shape(tensors[name]), norm) for name, norm in zip(tensors, norms, strict=True)}


def check_saved(folder: Path, expected: Mapping[str, Measure]) -> None:
    """Reads an adapter or a model again and compares it with what the live model held.

    Tensors that Transformers renames when it saves a whole model are compared in sum.

    Args:
        folder: Folder with safetensors files.
        expected: What `measure` found when the folder was written.

    Raises:
        RuntimeError: A tensor is missing, or has another shape or norm; the first ones are named.
    """
    found = _read(folder)
    wrong = [
        f"{name} is {found[name]}, not {expected[name]}"
        for name in expected.keys() & found.keys()
        if found[name].shape != expected[name].shape or not _near(found[name].norm, expected[name].norm)
    ]
    missing = {name: expected[name] for name in expected.keys() - found.keys()}
    added = {name: found[name] for name in found.keys() - expected.keys()}
    if not _equal_in_sum(missing.values(), added.values()):
        wrong += [f"{name} is missing" for name in missing] + [f"{name} does not belong there" for name in added]
    if wrong:
        raise RuntimeError(
            f"{folder} does not hold what was trained: of {len(expected)} tensors {len(wrong)} differ.\n"
            + "\n".join(sorted(wrong)[:3])
        )


def trained_tensors(model: PreTrainedModel | PeftModel) -> dict[str, Tensor]:
    """Returns the live tensors that belong into the file; of tied ones the first."""
    tensors: dict[int, tuple[str, Tensor]] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if not isinstance(model, PeftModel) or f".{_TRAINED}." in name:
            tensors.setdefault(id(tensor), (name, tensor))
    return dict(tensors.values())


def names_in_file(model: PreTrainedModel | PeftModel, names: Iterable[str]) -> dict[str, str]:
    """Returns each tensor's name in the file; PEFT is asked for the names that it will write."""
    names = list(names)
    if not isinstance(model, PeftModel):
        return {name: name for name in names}
    numbered = {name: torch.tensor(number) for number, name in enumerate(names)}
    written = get_peft_model_state_dict(model, state_dict=numbered, adapter_name=_TRAINED, save_embedding_layers=False)
    return {names[int(number)]: name for name, number in written.items()}


def _gather(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns the whole tensors on rank 0, on the CPU; an empty dictionary on the other ranks."""
    state = {}
    for name, tensor in tensors.items():
        whole = _whole(tensor)
        if PartialState().is_main_process:
            state[name] = whole
    return state


def _whole(tensor: Tensor) -> Tensor:
    if isinstance(tensor, DTensor):
        return tensor.detach().full_tensor().cpu()
    if hasattr(tensor, "ds_id"):
        from deepspeed import zero

        with zero.GatheredParameters([tensor]):
            return tensor.detach().cpu().clone()
    return tensor.detach().cpu()


def _is_divided(tensor: Tensor) -> bool:
    return isinstance(tensor, DTensor) or hasattr(tensor, "ds_id")


def _shape(tensor: Tensor) -> tuple[int, ...]:
    return tuple(getattr(tensor, "ds_shape", tensor.shape))


def _square_here(tensor: Tensor) -> Tensor:
    """Returns the sum of the squares of this rank's piece, so that the sum over the ranks is that of the whole."""
    copies = 1
    if isinstance(tensor, DTensor):
        replicated = (place.is_replicate() for place in tensor.placements)
        copies = math.prod(size for size, several in zip(tensor.device_mesh.shape, replicated, strict=True) if several)
        tensor = tensor.to_local()
    elif hasattr(tensor, "ds_id"):
        piece = tensor.ds_tensor.flatten()
        begin = piece.numel() * torch.distributed.get_rank(tensor.ds_process_group)
        tensor = piece[: max(0, tensor.ds_numel - begin)]  # the last piece is filled up with whatever was there
    return tensor.detach().double().square().sum() / copies


def _read(folder: Path) -> dict[str, Measure]:
    found = {}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 - it cannot be iterated over
                tensor = tensors.get_tensor(name)
                found[name] = Measure(tuple(tensor.shape), tensor.double().norm().item())
    return found


def _near(one: float, other: float) -> bool:
    return math.isclose(one, other, rel_tol=1e-6, abs_tol=1e-12)  # false for NaN


def _equal_in_sum(some: Iterable[Measure], others: Iterable[Measure]) -> bool:
    sums = [
        (sum(math.prod(part.shape) for part in parts), math.hypot(*(part.norm for part in parts)))
        for parts in (list(some), list(others))
    ]
    return sums[0][0] == sums[1][0] and _near(sums[0][1], sums[1][1])
