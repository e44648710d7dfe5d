"""A reward model as judge: one number for a conversation and its answer."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers import AutoModelForSequenceClassification

from lora_dpo.data.chat import TurnEncoder
from lora_dpo.data.pair import Message
from lora_dpo.evaluation.judges.base import Judge, References
from lora_dpo.evaluation.judges.loading import architecture_of, load_judge_model, wrong_kind
from lora_dpo.evaluation.work import Work, name_of

_NEEDED = "a reward model"
_FIX = "Take a sequence classifier with one label that was trained on preferences."
_Item = tuple[Sequence[Message], str]


def is_reward_model(architecture: str) -> bool:
    """Returns whether a model of this class can be a reward model."""
    return architecture.endswith("ForSequenceClassification")


class RewardJudge(Judge):
    """Scores an answer by a sequence classifier's one logit.

    The conversation is written by the tokenizer's chat template; without one, prompt and answer are a pair of texts. A
    reward has no zero, so its agreement is that of pairs: is the correct answer rewarded more than the incorrect one?

    Args:
        work: How the forward passes are carried out.
        name: Reward model: Hub id or folder.
        batch_size: Answers judged at once.

    Raises:
        UserError: The model cannot be loaded, or is no sequence classifier with one label.
    """

    threshold = None
    needs_references = False

    def __init__(self, work: Work, name: str, *, batch_size: int) -> None:
        if not is_reward_model(architecture_of(name)):
            raise wrong_kind(name, _NEEDED, "", _FIX)
        self.name = name
        self._work, self._batch_size = work, batch_size
        self._reward = load_judge_model(name, AutoModelForSequenceClassification, _NEEDED, _FIX)
        labels = self._reward.model.config.id2label
        if len(labels) != 1:
            raise wrong_kind(name, _NEEDED, f"It has {len(labels)} labels: {', '.join(labels.values())}.", _FIX)
        self._encoder = None
        if getattr(self._reward.tokenizer, "chat_template", None):
            self._encoder = TurnEncoder(self._reward.tokenizer, "chat")
            self._reward.tokenizer.truncation_side = "left"  # the reward is read at the end

    def scores(
        self, prompts: Sequence[Sequence[Message]], answers: Sequence[str], references: Sequence[References]
    ) -> list[float]:
        """Returns the reward of each answer."""
        items = list(zip(prompts, answers, strict=True))
        names = [name_of(self._reward.key, list(prompt), answer) for prompt, answer in items]
        return self._work.map(
            "rewards",
            items,
            names,
            self._compute,
            batch_size=self._batch_size,
            size=lambda item: len(_text(item[0])) + len(item[1]),
        )

    @torch.no_grad()
    def _compute(self, batch: list[_Item]) -> list[float]:
        if self._encoder is not None:
            texts = [self._encoder.render(prompt, answer) for prompt, answer in batch]
            encoded = self._reward.batch(texts, add_special_tokens=False)
        else:
            encoded = self._reward.batch([_text(prompt) for prompt, _ in batch], [answer for _, answer in batch])
        return self._reward.model(**encoded).logits[:, 0].float().tolist()


def _text(prompt: Sequence[Message]) -> str:
    return "\n\n".join(turn["content"] for turn in prompt)
