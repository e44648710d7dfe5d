"""Tiny models whose windows and softcaps bite, and batches that are hard to share."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor
from transformers import AutoModelForCausalLM
from trl.trainer.dpo_trainer import DataCollatorForPreference
from trl.trainer.utils import add_fused_lm_head

from lora_dpo.tree.collate import PlanCollator
from lora_dpo.tree.hf import teach_trees
from lora_dpo.tree.lora import fuse_adapters

ARCHITECTURES = ("gpt2", "llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3", "gptj")
OUTPUTS = ("log_probs", "entropy", "mean_logits", "is_top1", "log_sum_sq_probs")
# Tiny random models have tiny logits: these caps bend them as Gemma-2's bend a real model's.
_CAPS = {"gemma2": {"attn_logit_softcapping": 1.5, "final_logit_softcapping": 2.0}}


@dataclass(frozen=True)
class Adapted:
    """A model with a LoRA adapter that does something, answering with and without trees."""

    model: PeftModel

    @property
    def trained(self) -> dict[str, Tensor]:
        """The adapter's parameters by name."""
        return {name: value for name, value in self.model.named_parameters() if value.requires_grad}

    def score(self, batch: dict[str, Any], *, tree: bool) -> Any:
        """Returns what TRL asks for, by its own forward or over the batch's tree."""
        labels = batch["input_ids"].masked_fill(batch["completion_mask"] == 0, -100)
        given = {"tree": batch["tree"]} if tree else {}
        inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
        return self.model(**inputs, labels=labels, fused_lm_head=True, use_cache=False, **given)

    def gradients(self, batch: dict[str, Any], upstream: Tensor, *, tree: bool) -> dict[str, Tensor]:
        """Returns the adapter's gradients of the log-probs, weighted with `upstream`."""
        self.model.zero_grad()
        self.score(batch, tree=tree).log_probs.backward(upstream)
        return {name: value.grad.clone() for name, value in self.trained.items()}


def adapted(folder: Path, architecture: str, *, dtype: torch.dtype = torch.float32, **options: Any) -> Adapted:
    """Loads a tiny model, makes its logits large, and adapts it; it takes trees as a trainer's model would."""
    attention = "eager" if architecture in {"gemma2", "gptj"} else "sdpa"
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=dtype, attn_implementation=attention, **_CAPS.get(architecture, {}), **options
    )
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    with torch.no_grad():
        for value in model.parameters():
            if value.ndim > 1 and value.is_floating_point():
                value.mul_(6.0)
    torch.manual_seed(1)
    config = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", fan_in_fan_out=architecture == "gpt2")
    peft_model = get_peft_model(model, config)
    for name, value in peft_model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(value, std=0.1)
    add_fused_lm_head(model, outputs=OUTPUTS)
    teach_trees(model, with_squares=True)
    fuse_adapters(peft_model)
    return Adapted(peft_model)


def hard_pairs(vocabulary: int = 250, *, seed: int = 0, count: int = 10) -> list[dict[str, list[int]]]:
    """Returns pairs with everything that sharing must get right, in a seeded random order.

    Shared prompts, shared answers, an answer that is another's beginning, a rejected answer that begins like the chosen
    one, answers of one token, prompts of one token, an answer that is chosen here and rejected there.
    """
    draw = random.Random(seed)

    def words(shortest: int, longest: int) -> list[int]:
        return [draw.randrange(5, vocabulary) for _ in range(draw.randint(shortest, longest))]

    prompt, other, one = words(20, 40), words(2, 6), words(1, 1)
    answers = [words(4, 30) for _ in range(4)]
    pairs = [
        (prompt, answers[0], answers[1]),
        (prompt, answers[0], answers[2]),
        (prompt, answers[1], answers[0][:3]),
        (prompt, answers[2], answers[2][:2] + words(5, 9)),
        (other, words(1, 1), answers[0]),
        (other, answers[0], words(1, 1)),
        (prompt[:7], prompt[7:], answers[3]),
        (one, words(1, 2), words(18, 25)),
        *((words(3, 30), words(1, 30), words(1, 30)) for _ in range(max(0, count - 8))),
    ]
    draw.shuffle(pairs)
    return [{"prompt_ids": p, "chosen_ids": c, "rejected_ids": r} for p, c, r in pairs]


def collated(pairs: list[dict[str, list[int]]], **options: Any) -> dict[str, Any]:
    """Returns TRL's padded batch with its tree."""
    return PlanCollator(DataCollatorForPreference(pad_token_id=0, **options), trees=True)(pairs)
