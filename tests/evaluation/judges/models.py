"""Tiny random judges."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import BertConfig, BertForSequenceClassification, BertModel, LlamaForSequenceClassification

from lora_dpo.data.pair import user
from lora_dpo.evaluation.judges.base import References
from tests.tiny import tiny_config, tiny_tokenizer

PROMPTS = [user("Do bats see?"), user("Why is the sky blue on a clear day?")]
REFERENCES = [
    References(["Yes, all bats can see.", "They do."], ["No.", "Bats are blind.", "Only at night, and only red."]),
    References(
        ["Air scatters blue light most.", "Because of the air."], ["It mirrors the sea.", "Someone painted it."]
    ),
]


def save_encoder(folder: Path, **options: int) -> Path:
    """Saves a tiny random BERT of 40 positions."""
    return _save(BertModel(_bert(**options)), "gpt2", folder)


def save_pair_reward(folder: Path, labels: int = 1) -> Path:
    """Saves a tiny random classifier of text pairs."""
    return _save(BertForSequenceClassification(_bert(num_labels=labels)), "gpt2", folder)


def save_chat_reward(folder: Path) -> Path:
    """Saves a tiny random reward model with a chat template."""
    config = tiny_config("llama", tiny_tokenizer("llama"))
    config.num_labels = 1
    return _save(LlamaForSequenceClassification(config), "llama", folder)


def _bert(**options: int) -> BertConfig:
    tokenizer = tiny_tokenizer("gpt2")
    return BertConfig(
        **{
            "vocab_size": len(tokenizer),
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "intermediate_size": 64,
            "max_position_embeddings": 40,
            "pad_token_id": tokenizer.eos_token_id,
            **options,
        }
    )


def _save(model: torch.nn.Module, tokenizer: str, folder: Path) -> Path:
    torch.manual_seed(0)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(folder)
    tiny_tokenizer(tokenizer).save_pretrained(folder)
    return folder
