"""The LoRA adapter: its configuration, its target layers, and going on from an existing one."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from pickle import UnpicklingError
from typing import TYPE_CHECKING

import torch
from peft import LoraConfig, PeftModel, get_peft_model_state_dict, load_peft_weights
from peft.utils import SAFETENSORS_WEIGHTS_NAME, WEIGHTS_NAME
from safetensors import SafetensorError
from transformers.pytorch_utils import Conv1D

from lora_dpo.console import note
from lora_dpo.errors import UserError, nearest
from lora_dpo.hub_errors import explain_hub_error, offline_unless_reachable
from lora_dpo.model.stacked import Update, merge_into_weights
from lora_dpo.recipe.schema import AdapterSection

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def lora_config(adapter: AdapterSection, model: PreTrainedModel) -> LoraConfig:
    """Returns PEFT's configuration of a fresh adapter.

    Args:
        adapter: The recipe's adapter section.
        model: The base model, in which every target must exist.

    Raises:
        UserError: A target matches no layer, or is the output head.
    """
    layers = linear_layers(model)
    targets = adapter.targets if adapter.targets == "all-linear" else _present(adapter.targets, layers, model)
    return LoraConfig(
        task_type="CAUSAL_LM",
        r=adapter.r,
        lora_alpha=adapter.alpha,
        lora_dropout=adapter.dropout,
        target_modules=targets,
        use_rslora=adapter.rslora,
        use_dora=adapter.dora,
        fan_in_fan_out=any(isinstance(layer, Conv1D) for layer in layers.values()),
    )


def linear_layers(model: PreTrainedModel) -> dict[str, torch.nn.Module]:
    """Returns the layers that an adapter can be put on, by full name; the output head is none of them."""
    head = model.get_output_embeddings()
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear | Conv1D) and module is not head
    }


def continue_adapter(adapter: AdapterSection, model: PreTrainedModel) -> PeftModel:
    """Loads an existing adapter onto the base model and makes it trainable.

    Args:
        adapter: The recipe's adapter section; `init_from` is an adapter folder, a run folder or a Hub id.
        model: The base model.

    Raises:
        UserError: There is no adapter, or it does not fit the model.
    """
    name = str(adapter.init_from)
    _check_holds_adapter(name)
    loaded = load_adapter(name, model, is_trainable=True)
    _say_what_is_kept(adapter, loaded.peft_config["default"])
    return loaded


def merge_adapter(adapter: AdapterSection, model: PreTrainedModel) -> tuple[PreTrainedModel, dict[str, Update]]:
    """Puts an existing adapter into the weights of the base model, in memory.

    Args:
        adapter: The recipe's adapter section; `init_from` is an adapter folder, a run folder or a Hub id.
        model: The base model.

    Returns:
        The model with other weights, and what was added to each layer.

    Raises:
        UserError: There is no adapter, it does not fit the model, or is more than a sum of low-rank updates.
    """
    name = str(adapter.init_from)
    _check_holds_adapter(name)
    return merge_into_weights(load_adapter(name, model), name)


def _check_holds_adapter(name: str) -> None:
    folder = adapter_folder(name)
    if folder is None and Path(name).expanduser().exists():
        raise UserError(
            f"adapter.init_from {name} holds no adapter.",
            why="There is no adapter_config.json in it, nor in a folder adapter/ below it.",
            fix="Give the folder of a finished run, or of a PEFT adapter.",
        )


def load_adapter(
    name: str, model: PreTrainedModel | PeftModel, *, label: str = "default", is_trainable: bool = False
) -> PeftModel:
    """Puts an adapter on its base model.

    Args:
        name: Adapter folder, run folder or Hub id.
        model: The base model, or what an earlier call returned: then this is a further adapter, and not active yet.
        label: What PEFT knows the adapter by.
        is_trainable: Whether it is to be trained further.

    Raises:
        UserError: It cannot be read, or does not fit the model in all its parts.
    """
    folder = adapter_folder(name)
    place = str(folder or name)
    try:
        with nullcontext() if folder else offline_unless_reachable():
            # What is not trained further needs no initial values.
            options = {"is_trainable": is_trainable, "low_cpu_mem_usage": not is_trainable}
            if isinstance(model, PeftModel):
                model.load_adapter(place, label, **options)
                loaded = model
            else:
                loaded = PeftModel.from_pretrained(model, place, label, **options)
            odd = _without_counterpart(loaded, label, load_peft_weights(place, device="cpu"))
    except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as error:
        explained = None if folder else explain_hub_error(error, name)
        raise explained or _does_not_fit(name, str(error).splitlines()[0]) from error
    if odd:
        raise _does_not_fit(name, f"{len(odd)} tensors have no counterpart, such as {odd[0]}")
    return loaded


def read_tensors(folder: Path) -> dict[str, torch.Tensor]:
    """Reads an adapter's weights.

    Args:
        folder: The adapter's folder.

    Raises:
        UserError: They are not there, or damaged.
    """
    again = "Copy or download the adapter again."
    if not any((folder / file).is_file() for file in (SAFETENSORS_WEIGHTS_NAME, WEIGHTS_NAME)):
        raise UserError(f"The adapter {folder} has no weights: there is no {SAFETENSORS_WEIGHTS_NAME}.", fix=again)
    try:
        return load_peft_weights(str(folder), device="cpu")
    except (OSError, ValueError, RuntimeError, KeyError, SafetensorError, UnpicklingError, EOFError) as error:
        raise UserError(
            f"The weights of the adapter {folder} cannot be read: {str(error).splitlines()[0]}", fix=again
        ) from error


def adapter_folder(name: str) -> Path | None:
    """Returns the folder with the adapter that `adapter.init_from` names, or None where it names no such folder."""
    path = Path(name).expanduser()
    return next((folder for folder in (path, path / "adapter") if (folder / "adapter_config.json").is_file()), None)


def _without_counterpart(loaded: PeftModel, label: str, saved: Mapping[str, torch.Tensor]) -> list[str]:
    """Returns the adapter's tensors that only the file or only the model has; PEFT itself would go on without them."""
    expected = get_peft_model_state_dict(loaded, adapter_name=label, save_embedding_layers=False).keys()
    missing = [name for name in expected if name not in saved]
    return missing + [name for name in saved if name not in expected and "lora_" in name]


def _does_not_fit(name: str, why: str) -> UserError:
    return UserError(
        f"The adapter {name} cannot be put on this model: {why}",
        fix="Use the base model that the adapter was trained on, and a complete copy of the adapter.",
    )


def _say_what_is_kept(adapter: AdapterSection, kept: LoraConfig) -> None:
    if (adapter.r, adapter.alpha) != (kept.r, kept.lora_alpha):
        note(
            f"The adapter is continued, so its own r {kept.r} and alpha {kept.lora_alpha:g} hold, "
            f"not the recipe's r {adapter.r} and alpha {adapter.alpha:g}."
        )


def _present(targets: list[str], layers: dict[str, torch.nn.Module], model: PreTrainedModel) -> list[str]:
    """Returns the names of layers that exist; of alternatives (`c_attn|q_proj`) one must."""
    head = model.get_output_embeddings()
    head_name = next((name for name, module in model.named_modules() if module is head), "lm_head")
    known = sorted({name.rpartition(".")[2] for name in layers})
    present = []
    for target in targets:
        alternatives = target.split("|")
        if head_name.rpartition(".")[2] in (name.rpartition(".")[2] for name in alternatives):
            raise UserError(
                f"adapter.targets names '{target}', the output head.",
                why="Log-probabilities are computed from the head's own weight; an adapter on it would not be trained.",
                fix=f"Leave it out; all-linear means: {', '.join(known)}.",
            )
        found = [name for name in alternatives if any(f".{layer}".endswith(f".{name}") for layer in layers)]
        if not found:
            match = nearest(target, known)
            raise UserError(
                f"adapter.targets names '{target}', which matches no linear layer of this model.",
                fix=(f"Did you mean '{match}'? " if match else "") + f"There are: {', '.join(known)}.",
            )
        present += found
    return present
