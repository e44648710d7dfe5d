"""The weights that a model in 4 bits computes with: quantised to nf4 and back, as QLoRA trains upon."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import Linear
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D
from transformers.quantizers.base import HfQuantizer
from transformers.quantizers.quantizers_utils import should_convert_module

from lora_dpo.errors import UserError

NF4 = {"bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True}
"""How `load_model(four_bit=True)` quantises, in blocks of 64, which is bitsandbytes' default."""
_BLOCK = 64


def bitsandbytes() -> Any:
    """Imports bitsandbytes.

    Raises:
        UserError: It is not installed.
    """
    try:
        import bitsandbytes
    except ImportError:
        raise UserError(
            "adapter.method qlora needs the package bitsandbytes.", fix="Run: pip install bitsandbytes"
        ) from None
    return bitsandbytes


class FourBit:
    """Takes weights to 4 bits and back. Each is quantised once, which takes long, and kept in a file.

    Args:
        model: The model without adapters.
        dtype: The precision that it was in when it was quantised for the training.
        folder: Where the quantised weights are kept; made.

    Attributes:
        names: The weights that are quantised; the output head is not among them.

    Raises:
        UserError: bitsandbytes is not installed.
    """

    def __init__(self, model: PreTrainedModel, dtype: torch.dtype, folder: Path) -> None:
        bitsandbytes()
        kept = HfQuantizer.get_modules_to_not_convert(model, None, model._keep_in_fp32_modules)
        self._modules = {
            f"{path}.weight": module
            for path, module in model.named_modules()
            if (type(module) is Linear or isinstance(module, Conv1D)) and should_convert_module(path, kept)
        }
        self.names = frozenset(self._modules)
        self._dtype, self._folder = dtype, folder

    def __call__(self, name: str, weight: Tensor) -> Tensor:
        """Returns the weight that 4 bits leave, in float32; other weights as they are.

        Args:
            name: The weight's name.
            weight: Its value.
        """
        if name not in self._modules:
            return weight
        functional = bitsandbytes().functional
        device = self._modules[name].weight.device
        turned = isinstance(self._modules[name], Conv1D)  # quantised as a linear layer has it
        file = self._folder / f"{name}.pt"
        if not file.is_file():
            self._folder.mkdir(parents=True, exist_ok=True)
            value = (weight.T if turned else weight).to(device, self._dtype).contiguous()
            options = {"compress_statistics": NF4["bnb_4bit_use_double_quant"], "blocksize": _BLOCK}
            state = functional.quantize_4bit(value, quant_type=NF4["bnb_4bit_quant_type"], **options)
            torch.save(state, file)
        packed, state = torch.load(file, map_location=device, weights_only=False)
        value = functional.dequantize_4bit(packed, state).float()
        return value.T.contiguous() if turned else value
