"""A model that answers, with its base to compare with: what a terminal, `lora-dpo generate` or a web page talks to."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from accelerate import PartialState
from peft import PeftModel
from transformers import PreTrainedModel

from lora_dpo.console import note
from lora_dpo.data.chat import TurnEncoder
from lora_dpo.errors import UserError
from lora_dpo.evaluation.policies import Policies
from lora_dpo.inference.found import Found
from lora_dpo.inference.sampling import Sampling
from lora_dpo.inference.streaming import Writing, until
from lora_dpo.model.adapter import load_adapter
from lora_dpo.model.answering import Answer, Prompts, positions_of, write_batch
from lora_dpo.model.base import load_config, load_model, load_tokenizer, resolve
from lora_dpo.model.lineage import check_lineage, check_whole, identify
from lora_dpo.model.record import read_record
from lora_dpo.model.same_tokenizer import check_same_tokenizer
from lora_dpo.model.weights import fetched


class ChatModel:
    """A model that answers; several conversations may share it, one answer is written at a time.

    Its weights are loaded by the first answer, or by `load`.

    Args:
        found: What it is.

    Attributes:
        found: What it is.
        encoder: How turns become tokens, as in training.
        positions: How many tokens it can read; None is any number.

    Raises:
        UserError: Its tokenizer or configuration cannot be read, or it is not what was trained.
    """

    def __init__(self, found: Found) -> None:
        self.found = found
        tokenizer = load_tokenizer(found.model)
        self.encoder = TurnEncoder(tokenizer, found.model.template)
        self.positions = positions_of(load_config(resolve(found.model), found.model))
        if found.is_adapter:
            check_lineage(found.place, identify(found.model, tokenizer), name=found.name)
            check_same_tokenizer(tokenizer, found.model, found.place, chats=self.encoder.style == "chat")
        elif (record := read_record(place := resolve(found.model), found.model.revision)) is not None:
            check_whole(found.name, fetched(place, found.model.revision), record, tokenizer)
        self._policies: Policies | None = None
        self._lock = threading.RLock()

    @property
    def base_name(self) -> str | None:
        """The model before the training; None where nothing says which one it was."""
        return None if self.found.base is None else self.found.base.name

    def load(self, *, base: bool = False) -> Policies:
        """Loads the weights, unless they are there.

        Args:
            base: Whether the base is to answer as well; a whole model's own is loaded beside it.

        Raises:
            UserError: They cannot be read.
        """
        with self._lock:
            if self._policies is None:
                self._policies = Policies(self._loaded())
            if base and self._policies.base is None and not self.found.is_adapter:
                self._policies = Policies(self._policies.trained, self._loaded_base())
            return self._policies

    def write(self, prompt: Sequence[int], sampling: Sampling, *, base: bool = False) -> Writing:
        """Begins to write an answer.

        Args:
            prompt: The conversation, as token ids.
            sampling: How it is written.
            base: Whether the base answers.
        """

        def one(**watching: Any) -> Answer:
            return self._answers([prompt], sampling, base=base, **watching)[0]

        return Writing(one, self.encoder.tokenizer)

    def answers(
        self,
        prompts: Prompts,
        sampling: Sampling,
        *,
        base: bool = False,
        seeds: Sequence[int] | None = None,
        stop: threading.Event | None = None,
    ) -> list[Answer]:
        """Returns the answers to several prompts; each depends on its own prompt alone, up to rounding.

        Args:
            prompts: Conversations, as token ids.
            sampling: How they are written.
            base: Whether the base answers.
            seeds: A seed for each prompt, all of which are equally long; None takes that of `sampling`.
            stop: Ends the writing where it is, once it is set.

        Raises:
            UserError: A prompt leaves no position for an answer.
        """
        watching = {} if stop is None else {"stopping_criteria": until(stop)}
        return self._answers(prompts, sampling, base=base, seeds=seeds, **watching)

    def _answers(
        self, prompts: Prompts, sampling: Sampling, *, base: bool, seeds: Sequence[int] | None = None, **watching: Any
    ) -> list[Answer]:
        with self._lock, self._policy(base) as model:
            return write_batch(
                model,
                self.encoder.tokenizer,
                prompts,
                max_new_tokens=sampling.max_new_tokens,
                stops=self.encoder.stops,
                processors=partial(sampling.processors, seeds=seeds),
                **watching,
            )

    @contextmanager
    def _policy(self, base: bool) -> Iterator[torch.nn.Module]:
        policies = self.load(base=base)
        with policies.before() if base else policies.after() as model:
            yield model

    def _loaded(self) -> PreTrainedModel | PeftModel:
        found = self.found
        model: Any = load_model(found.model, four_bit=found.four_bit)
        if found.is_adapter:
            model = load_adapter(found.place, model)
        return model if found.four_bit else model.to(PartialState().device)

    def _loaded_base(self) -> PreTrainedModel:
        base = self.found.base
        if base is None:
            raise UserError(
                f"{self.found.name} does not say which model it was before the training.", fix="Name it: --base MODEL."
            )
        note(f"Loading {base.name}, which is kept in memory beside {self.found.name}.")
        own = resolve(self.found.model)
        check_same_tokenizer(load_tokenizer(base), base, own, chats=self.encoder.style == "chat")
        return load_model(base).to(PartialState().device)
