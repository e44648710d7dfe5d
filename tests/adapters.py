"""Adapters with random values, on models from files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from peft import get_peft_model

from lora_dpo.model.adapter import lora_config
from lora_dpo.model.base import load_model
from lora_dpo.recipe.schema import AdapterSection, ModelSection


def save_adapter(base: Path, folder: Path, *, seed: int = 1, std: float = 0.1, **settings: Any) -> Path:
    """Saves an adapter that changes a model's answers; `settings` are keys of a recipe's adapter section."""
    model = load_model(ModelSection(name=str(base)))
    torch.manual_seed(seed)
    adapted = get_peft_model(model, lora_config(AdapterSection(**{"r": 4, "alpha": 8, **settings}), model))
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=std)
        elif "lora_magnitude" in name:
            parameter.data *= 1.2
    adapted.save_pretrained(folder)
    return folder


def merged_by_peft(base: Path, *adapters: Path) -> dict[str, torch.Tensor]:
    """Returns what PEFT makes of a model in memory, in float32, one adapter after the other."""
    from peft import PeftModel

    model: Any = load_model(ModelSection(name=str(base), dtype="float32"))
    for adapter in adapters:
        model = PeftModel.from_pretrained(model, str(adapter)).merge_and_unload()
    return model.state_dict()
