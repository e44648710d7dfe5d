"""Loading the base model and its tokenizer, with every way to fail said in words."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

from lora_dpo.errors import UserError
from lora_dpo.hub_errors import explain_hub_error, offline_unless_reachable
from lora_dpo.model.four_bit import NF4, bitsandbytes
from lora_dpo.model.gguf import dequantised
from lora_dpo.model.location import locate
from lora_dpo.model.precision import choose_attention, choose_dtype
from lora_dpo.recipe.schema import ModelSection

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

_PROBE = "Hello, world"
_DAMAGED_WEIGHTS = ("PytorchStreamReader", "size mismatch", "mismatched")


def resolve(model: ModelSection) -> str:
    """Returns what `from_pretrained` takes: a Hub id or a local folder; a GGUF file is dequantised first."""
    place = locate(model.name)
    if place.gguf_file is not None:
        return str(dequantised(place.gguf_file))
    return str(place.folder) if place.folder is not None else str(place.hub_id)


def load_tokenizer(model: ModelSection) -> PreTrainedTokenizerBase:
    """Loads the tokenizer, with a padding token.

    Raises:
        UserError: The model has no tokenizer, or it cannot be read.
    """
    path = resolve(model)
    load_config(path, model)
    with loading(model.name):
        try:
            tokenizer = AutoTokenizer.from_pretrained(path, **_hub_options(model))
        except (ValueError, TypeError, KeyError) as error:  # the files are not there, or damaged
            if isinstance(error, OSError) or "trust_remote_code" in str(error):
                raise
            raise _no_tokenizer(model.name, error) from error
    # Without its files Transformers makes a tokenizer that knows a few special tokens, and drops all text.
    if set(tokenizer(_PROBE, add_special_tokens=False)["input_ids"]) <= {tokenizer.unk_token_id}:
        raise _no_tokenizer(model.name)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.padding_side = "right"
    return tokenizer


def load_model(model: ModelSection, *, four_bit: bool = False) -> PreTrainedModel:
    """Loads the base model for training.

    Args:
        model: The recipe's model section.
        four_bit: Quantise the weights to nf4 with double quantisation (QLoRA).

    Returns:
        The model, on the CPU, or on this process's GPU where it is quantised.

    Raises:
        UserError: The model cannot be found or read, or bitsandbytes is not installed.
    """
    path = resolve(model)
    options = _four_bit_options(choose_dtype(model.dtype)) if four_bit else {}
    loaded = _load(path, model, load_config(path, model), options)
    if four_bit:
        _keep_differentiable(loaded)
    return loaded


def load_on_disk(model: ModelSection, folder: Path, offload: Path, dtype: torch.dtype) -> PreTrainedModel:
    """Loads a model whose weights stay in their files, from which Accelerate reads each when its module is called.

    It is to be run in float32, whatever its weights are in.

    Args:
        model: The model, which says the configuration.
        folder: Where the weights are.
        offload: Folder for the few weights that Transformers changes while it loads them.
        dtype: What the weights are in: Transformers would read all of them at once to change it.

    Raises:
        UserError: The model cannot be found or read.
    """
    section = model.model_copy(update={"dtype": "float32", "attention": "auto"})
    config = load_config(resolve(model), model)
    options = {"config": config, "device_map": {"": "disk"}, "offload_folder": str(offload), "dtype": dtype}
    return _load(str(folder), section, config, options)


def _load(path: str, model: ModelSection, config: PretrainedConfig, options: dict[str, Any]) -> PreTrainedModel:
    dtype = choose_dtype(model.dtype)
    with loading(model.name):
        if (attention := choose_attention(model, config, dtype)) is not None:
            options = {**options, "attn_implementation": attention}
        return AutoModelForCausalLM.from_pretrained(path, **{**_hub_options(model), "dtype": dtype, **options})


def load_config(path: str, model: ModelSection) -> PretrainedConfig:
    """Loads a model's configuration.

    Args:
        path: What `resolve` returned.
        model: The recipe's model section.

    Raises:
        UserError: It cannot be found or read.
    """
    with loading(model.name):
        try:
            return AutoConfig.from_pretrained(path, **_hub_options(model))
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            if isinstance(error, OSError) or "trust_remote_code" in str(error):
                raise
            raise _unreadable(f"{model.name}'s config.json", error) from error


def _hub_options(model: ModelSection) -> dict[str, Any]:
    revision = {} if model.revision is None else {"revision": model.revision}
    return {"trust_remote_code": model.trust_remote_code, **revision}


def _four_bit_options(dtype: torch.dtype) -> dict[str, Any]:
    bitsandbytes()  # Transformers imports it much later, with a long traceback
    quantisation = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=dtype, **NF4)
    device = torch.cuda.current_device() if torch.cuda.is_available() else "cpu"
    return {"quantization_config": quantisation, "device_map": {"": device}}


def _keep_differentiable(model: PreTrainedModel) -> None:
    """Stops bitsandbytes from repacking 4-bit weights on a CPU that has AVX512-BF16.

    It does so at the first forward pass in evaluation mode and for good: from then on its kernel has no gradient, so a
    training would go on with wrong gradients after its first evaluation, and on scales rounded to bfloat16.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


@contextmanager
def loading(name: str) -> Iterator[None]:
    """Turns what libraries raise while they load a model into words.

    Args:
        name: What the user calls the model.

    Raises:
        UserError: It cannot be found or read.
    """
    on_hub = locate(name).hub_id is not None
    try:
        with offline_unless_reachable() if on_hub else nullcontext():
            yield
    except UserError:
        raise
    except (OSError, SafetensorError, json.JSONDecodeError, EOFError, RuntimeError, ValueError) as error:
        if isinstance(error, RuntimeError) and not any(text in str(error) for text in _DAMAGED_WEIGHTS):
            raise
        explained = explain_hub_error(error, name) if on_hub else None
        if explained is None and isinstance(error, ValueError) and not isinstance(error, json.JSONDecodeError):
            if "trust_remote_code" in str(error):
                raise UserError(
                    f"The model {name} ships Python code of its own.",
                    fix="If you trust it, set model.trust_remote_code=true.",
                ) from error
            raise
        raise (explained or _unreadable(f"The model {name}", error)) from error


def _unreadable(what: str, error: BaseException) -> UserError:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return UserError(f"{what} cannot be read: {lines[0]}", fix="Download or save it again; a copy may be incomplete.")


def _no_tokenizer(name: str, error: BaseException | None = None) -> UserError:
    return UserError(
        f"The model {name} has no tokenizer that can be read{f': {str(error).splitlines()[0]}' if error else '.'}",
        fix="Save the tokenizer beside the model: AutoTokenizer.from_pretrained(BASE).save_pretrained(FOLDER).",
    )
