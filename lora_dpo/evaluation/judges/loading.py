"""A judge's model: loaded, of the right kind, and read in batches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from accelerate import PartialState
from transformers.integrations import deepspeed

from lora_dpo.console import note
from lora_dpo.errors import UserError
from lora_dpo.model.base import load_config, load_tokenizer, loading, resolve
from lora_dpo.model.hashes import weights_hash
from lora_dpo.model.precision import choose_dtype
from lora_dpo.recipe.schema import ModelSection

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_NOT_NEEDED = "pooler"
"""Weights that many encoders are saved without, and that nothing here reads."""


@dataclass(slots=True)
class JudgeModel:
    """A judge's model.

    Attributes:
        name: What the user calls it.
        model: The model, in evaluation mode on this process's device.
        tokenizer: Its tokenizer.
        key: What its weights are known by.
        cuts: Whether a text was longer than the model reads.
    """

    name: str
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    key: str
    cuts: bool = False

    def batch(self, texts: Sequence[str], pairs: Sequence[str] | None = None, **options: Any) -> dict[str, Any]:
        """Returns texts, or pairs of texts, as one padded batch; what is longer than the model reads is cut.

        Args:
            texts: The texts.
            pairs: The second text of each pair.
            options: Further options of the tokenizer.
        """
        options |= {"verbose": False}
        limit = self._limit
        if not self.cuts and max(map(len, self.tokenizer(texts, pairs, **options)["input_ids"])) > limit:
            self.cuts = True
            note(f"{self.name} reads {limit} tokens: of longer texts it judges a part.")
        encoded = self.tokenizer(
            texts, pairs, padding=True, truncation=True, max_length=limit, return_tensors="pt", **options
        )
        return dict(encoded.to(self.model.device))

    @property
    def _limit(self) -> int:
        positions = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        return min(self.tokenizer.model_max_length, positions or self.tokenizer.model_max_length)


def architecture_of(name: str) -> str:
    """Returns the class that a model was saved from, such as `BertModel`.

    Raises:
        UserError: The model cannot be found or read.
    """
    section = ModelSection(name=name)
    return next(iter(load_config(resolve(section), section).architectures or []), "model that does not say its kind")


def load_judge_model(name: str, loader: Any, needed: str, fix: str) -> JudgeModel:
    """Loads a judge's model.

    Args:
        name: Hub id or folder.
        loader: Which of Transformers' Auto classes loads it.
        needed: What the model must be, for the error.
        fix: What to take instead, for the error.

    Raises:
        UserError: The model cannot be found or read, or weights that the judge reads are not among its own.
    """
    section = ModelSection(name=name)
    path, tokenizer = resolve(section), load_tokenizer(section)
    with loading(name), _undivided():
        model, info = loader.from_pretrained(path, dtype=choose_dtype("auto"), output_loading_info=True)
    missing = sorted(key for key in info["missing_keys"] if _NOT_NEEDED not in key)
    if missing:
        raise wrong_kind(name, needed, f"It has no weights for {missing[0]}.", fix)
    if model.config.pad_token_id is None:
        model.config.pad_token_id = tokenizer.pad_token_id
    model.eval().requires_grad_(False).to(PartialState().device)
    return JudgeModel(name, model, tokenizer, weights_hash(path, None) or name)


@contextmanager
def _undivided() -> Iterator[None]:
    """Keeps ZeRO-3, which Transformers switches on for a whole process, from dividing a judge's weights."""
    reference = deepspeed._hf_deepspeed_config_weak_ref
    config = reference() if reference is not None else None
    deepspeed.unset_hf_deepspeed_config()
    try:
        yield
    finally:
        if config is not None:
            deepspeed.set_hf_deepspeed_config(config)


def wrong_kind(name: str, needed: str, why: str, fix: str) -> UserError:
    """Returns the error for a model that is not what the judge needs."""
    return UserError(f"{name} is a {architecture_of(name)}, which is not {needed}.", why=why, fix=fix)
