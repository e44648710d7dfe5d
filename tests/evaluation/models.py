"""Policies of tiny models whose adapters do something."""

from __future__ import annotations

from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model

from lora_dpo.data.chat import TurnEncoder
from lora_dpo.evaluation.policies import Policies
from lora_dpo.model.base import load_model, load_tokenizer
from lora_dpo.recipe.schema import ModelSection


def adapted(model: torch.nn.Module, std: float = 0.5) -> PeftModel:
    """Returns the model with a random adapter, in training mode as a trainer leaves it."""
    torch.manual_seed(1)
    tuned = get_peft_model(model, LoraConfig(target_modules="all-linear", r=4))
    for name, parameter in tuned.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=std)
    return tuned.train()


def tiny_policies(folder: Path, dtype: str = "float32") -> tuple[Policies, TurnEncoder]:
    """Returns a saved tiny model with a random adapter, and how it reads turns."""
    section = ModelSection(name=str(folder), dtype=dtype)
    return Policies(adapted(load_model(section))), TurnEncoder(load_tokenizer(section))
