"""Tiny random models with the real architectures' features, and tokenizers with the real templates' habits."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    Gemma2Config,
    Gemma3TextConfig,
    GPT2Config,
    GPTJConfig,
    LlamaConfig,
    MistralConfig,
    PretrainedConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
)
from transformers.models.auto.modeling_auto import AutoModelForCausalLM

CORPUS = Path(__file__).parent.parent / "lora_dpo" / "data" / "misconceptions.csv"

# Gemma-2: BOS in the template, no system role, the assistant is called model, end of turn is not EOS.
GEMMA_TEMPLATE = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}"
    "{% endif %}{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{% set role = 'model' if message['role'] == 'assistant' else message['role'] %}"
    "{{ '<start_of_turn>' + role + '\n' + message['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
# Llama 3.1: BOS in the template, headers, content trimmed.
LLAMA3_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'"
    " + message['content'] | trim + '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
# TinyLlama (Zephyr): no BOS in the template, EOS ends a turn.
ZEPHYR_TEMPLATE = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>\n' + message['content'] + eos_token + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)
# Qwen: ChatML with a default system turn, no BOS at all.
CHATML_TEMPLATE = (
    "{% if messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nYou are helpful.<|im_end|>\n' }}{% endif %}"
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

ARCHITECTURES = ("gpt2", "gptj", "llama", "mistral", "tinyllama", "gemma2", "gemma3", "qwen2", "qwen3")

# bos, eos, further special tokens, template, whether the tokenizer itself adds a BOS
_TOKENIZERS: dict[str, tuple[str | None, str, tuple[str, ...], str | None, bool]] = {
    "gpt2": ("<|endoftext|>", "<|endoftext|>", (), None, False),
    "gptj": ("<|endoftext|>", "<|endoftext|>", (), None, False),
    "llama": (
        "<|begin_of_text|>",
        "<|end_of_text|>",
        ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
        LLAMA3_TEMPLATE,
        True,
    ),
    "tinyllama": ("<s>", "</s>", (), ZEPHYR_TEMPLATE, True),
    "mistral": ("<s>", "</s>", (), None, True),
    "gemma2": ("<bos>", "<eos>", ("<start_of_turn>", "<end_of_turn>"), GEMMA_TEMPLATE, True),
    "gemma3": ("<bos>", "<eos>", ("<start_of_turn>", "<end_of_turn>"), GEMMA_TEMPLATE, True),
    "qwen2": (None, "<|im_end|>", ("<|im_start|>", "<|endoftext|>"), CHATML_TEMPLATE, False),
    "qwen3": (None, "<|im_end|>", ("<|im_start|>", "<|endoftext|>"), CHATML_TEMPLATE, False),
}


@cache
def _backend(special: tuple[str, ...]) -> str:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=list(special),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS.read_text(encoding="utf-8").splitlines(), trainer)
    return tokenizer.to_str()


def tiny_tokenizer(architecture: str) -> PreTrainedTokenizerFast:
    """Returns a byte-level BPE tokenizer with the special tokens and template of the architecture."""
    bos, eos, further, template, adds_bos = _TOKENIZERS[architecture]
    special = tuple(dict.fromkeys(token for token in (bos, eos, *further) if token))
    backend = Tokenizer.from_str(_backend(special))
    if adds_bos:
        backend.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, backend.token_to_id(bos))]
        )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token=bos, eos_token=eos, additional_special_tokens=list(further)
    )
    tokenizer.chat_template = template
    return tokenizer


def tiny_config(architecture: str, tokenizer: PreTrainedTokenizerFast) -> PretrainedConfig:
    """Returns a configuration of a few thousand parameters with what makes the architecture special."""
    ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id, "vocab_size": len(tokenizer)}
    grouped = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
    }
    if architecture == "gpt2":  # learned positions, Conv1D, tied head, dropout on by default
        return GPT2Config(n_embd=32, n_layer=2, n_head=4, n_positions=512, **ids)
    if architecture == "gptj":  # parallel attention and MLP, head with a bias
        return GPTJConfig(n_embd=32, n_layer=2, n_head=4, n_positions=512, rotary_dim=4, **ids)
    if architecture == "gemma2":  # both softcaps, a window shorter than the data, tied head
        return Gemma2Config(
            head_dim=8,
            sliding_window=16,
            attn_logit_softcapping=50.0,
            final_logit_softcapping=30.0,
            query_pre_attn_scalar=8,
            **grouped,
            **ids,
        )
    if architecture == "gemma3":  # norms of queries and keys, two rotary bases, a window on every other layer
        layers = ["sliding_attention", "full_attention"]
        return Gemma3TextConfig(
            head_dim=8, sliding_window=16, layer_types=layers, query_pre_attn_scalar=8, **grouped, **ids
        )
    if architecture == "mistral":  # a window shorter than the data on every layer
        return MistralConfig(sliding_window=16, **grouped, **ids)
    if architecture == "qwen2":  # biases, a window on the upper layer only
        return Qwen2Config(use_sliding_window=True, sliding_window=16, max_window_layers=1, **grouped, **ids)
    if architecture == "qwen3":
        return Qwen3Config(head_dim=8, tie_word_embeddings=True, **grouped, **ids)
    return LlamaConfig(**grouped, **ids)


def save_endless_model(folder: Path) -> Path:
    """Saves a tiny model that never ends an answer, so that one can be interrupted however late that is."""
    tokenizer = tiny_tokenizer("gptj")  # whose head has a bias
    config = tiny_config("gptj", tokenizer)
    config.n_positions = 8192
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    model.lm_head.bias.data[tokenizer.eos_token_id] = -1e6
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def save_tiny_model(architecture: str, folder: Path) -> Path:
    """Saves a tiny random model with its tokenizer, the same for the same architecture."""
    tokenizer = tiny_tokenizer(architecture)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(tiny_config(architecture, tokenizer))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
