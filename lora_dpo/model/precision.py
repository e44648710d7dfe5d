"""Which precision and which attention kernel a model gets on this machine."""

from __future__ import annotations

import importlib.metadata
from typing import TYPE_CHECKING

import torch
from packaging.version import Version
from transformers.utils import is_flash_attn_2_available

from lora_dpo.errors import UserError
from lora_dpo.recipe.schema import ModelSection

if TYPE_CHECKING:
    from transformers import PretrainedConfig

_FLASH_ATTENTION_WITH_SOFTCAP = Version("2.6.0")


def choose_dtype(requested: str) -> torch.dtype:
    """Returns the precision of the weights: bfloat16 on a GPU that has it, else float16; float32 on a CPU."""
    if requested != "auto":
        return getattr(torch, requested)
    if not torch.cuda.is_available():
        return torch.float32
    return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16


def choose_attention(model: ModelSection, config: PretrainedConfig, dtype: torch.dtype) -> str | None:
    """Returns an attention implementation that computes what the model defines.

    SDPA has no softcap; up to Transformers 5.20 Gemma-2's was dropped without a word.

    Args:
        model: The recipe's model section.
        config: The model's configuration.
        dtype: Precision of the weights.

    Returns:
        A name for `attn_implementation`, or None for the library's own choice.

    Raises:
        UserError: The recipe asks for a kernel that drops the softcap or is not installed.
    """
    softcap = getattr(config.get_text_config(), "attn_logit_softcapping", None)
    if model.attention == "auto":
        if softcap is None:
            return None
        return "flash_attention_2" if _flash_attention_can_softcap(dtype) else "eager"
    if model.attention == "sdpa" and softcap is not None:
        raise UserError(
            f"model.attention sdpa would drop the attention softcap ({softcap:g}) of {config.model_type}.",
            fix="Use model.attention=auto, eager, flex_attention, or flash_attention_2 from version 2.6.",
        )
    if model.attention == "flash_attention_2" and not is_flash_attn_2_available():
        raise UserError(
            "model.attention is flash_attention_2, but the package flash-attn is not installed or there is no GPU.",
            fix="Install flash-attn on the GPU machine, or use model.attention=auto.",
        )
    return model.attention


def _flash_attention_can_softcap(dtype: torch.dtype) -> bool:
    if dtype == torch.float32 or not is_flash_attn_2_available():
        return False
    return Version(importlib.metadata.version("flash-attn")) >= _FLASH_ATTENTION_WITH_SOFTCAP
