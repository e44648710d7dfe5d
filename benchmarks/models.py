"""The models that are trained: the quickstart's, a folder's, or random weights of a known shape."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING

import torch
from tokenizers import Tokenizer, models
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma3TextConfig,
    GPT2Config,
    LlamaConfig,
    PretrainedConfig,
    PreTrainedTokenizerFast,
)

from lora_dpo.model.base import load_model, load_tokenizer
from lora_dpo.model.precision import choose_attention
from lora_dpo.recipe.loading import load_recipe
from lora_dpo.recipe.schema import ModelSection

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

QUICKSTART = "quickstart"
_LAYERS = {"hidden_size": 512, "num_hidden_layers": 6, "num_attention_heads": 8, "num_key_value_heads": 4}
RANDOM: dict[str, Callable[[], PretrainedConfig]] = {
    "gpt2": lambda: GPT2Config(n_embd=512, n_layer=6, n_head=8, n_positions=2048, vocab_size=50_000),
    "llama": lambda: LlamaConfig(intermediate_size=1408, max_position_embeddings=2048, vocab_size=50_000, **_LAYERS),
    "gemma2": lambda: Gemma2Config(intermediate_size=2048, head_dim=64, query_pre_attn_scalar=64, **_LAYERS),
    "gemma3": lambda: Gemma3TextConfig(
        intermediate_size=2048, head_dim=64, query_pre_attn_scalar=64, vocab_size=256_000, **_LAYERS
    ),
}
"""6 layers x 512, 50k tokens; Gemma 256k, and Gemma-2 with both softcaps, which are its configuration's defaults."""


def section(name: str) -> ModelSection:
    """Returns the recipe's model section, in fp32; a random model reads with the quickstart's tokenizer.

    Args:
        name: `quickstart`, a name in `RANDOM`, or what a recipe's `model.name` takes.
    """
    if name == QUICKSTART or name in RANDOM:
        name = load_recipe("quickstart").model.name
    return ModelSection(name=name, dtype="float32")


@dataclass(frozen=True, slots=True)
class NamedModel:
    """Loads a model by its name, in fp32 on the CPU; can be sent to another process.

    Attributes:
        name: `quickstart`, a name in `RANDOM`, or what a recipe's `model.name` takes.
    """

    name: str

    def __call__(self) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        """Returns the model, all of it in memory, and its tokenizer."""
        model_section = section(self.name)
        if self.name in RANDOM:
            torch.manual_seed(0)
            model = random_model(RANDOM[self.name](), torch.float32, "cpu")
        else:
            model = load_model(model_section)
        for part in chain(model.parameters(), model.buffers()):
            # A safetensors file's pages are only mapped: they would count as memory when they are first read.
            part.data = part.data.clone()
        return model, load_tokenizer(model_section)


@dataclass(frozen=True, slots=True)
class SharedModel:
    """Hands out models with modules of their own around the same frozen weights.

    Attributes:
        base: The model, which stays as it is.
        tokenizer: Its tokenizer.
    """

    base: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase

    def __call__(self) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        """Returns a model and its tokenizer."""
        tensors = {id(part): part for part in chain(self.base.parameters(), self.base.buffers())}
        return copy.deepcopy(self.base, tensors), self.tokenizer


def gemma2_9b(layers: int = 42) -> Gemma2Config:
    """Returns the configuration of google/gemma-2-9b.

    Args:
        layers: Fewer, for a try.
    """
    return Gemma2Config(
        vocab_size=256_000,
        hidden_size=3584,
        intermediate_size=14336,
        num_hidden_layers=layers,
        num_attention_heads=16,
        num_key_value_heads=8,
        head_dim=256,
        query_pre_attn_scalar=256,
        sliding_window=4096,
        max_position_embeddings=8192,
        attn_logit_softcapping=50.0,
        final_logit_softcapping=30.0,
        tie_word_embeddings=True,
    )


def tiny_gemma2(layers: int = 2) -> Gemma2Config:
    """Returns Gemma-2 small enough for a smoke test."""
    return Gemma2Config(
        vocab_size=1000,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        query_pre_attn_scalar=16,
        sliding_window=32,
    )


def random_model(config: PretrainedConfig, dtype: torch.dtype, device: str) -> PreTrainedModel:
    """Returns a model of random weights, made where it stays.

    Args:
        config: Its configuration.
        dtype: Precision of the weights.
        device: Where they are.
    """
    attention = choose_attention(ModelSection(name="random"), config, dtype)
    with torch.device(device):
        return AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation=attention)


def blank_tokenizer() -> PreTrainedTokenizerFast:
    """Returns a tokenizer that knows how to pad, for pairs that are tokens already."""
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel({"<pad>": 0, "<eos>": 1}, unk_token="<pad>")),
        pad_token="<pad>",
        eos_token="<eos>",
    )
