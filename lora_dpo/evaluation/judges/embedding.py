"""A judge by similarity: is the answer nearer to a correct reference or to an incorrect one?"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoModel
from transformers.utils import cached_file

from lora_dpo.data.pair import Message
from lora_dpo.evaluation.judges.base import Judge, References
from lora_dpo.evaluation.judges.loading import architecture_of, load_judge_model, wrong_kind
from lora_dpo.evaluation.work import Work, name_of
from lora_dpo.model.base import loading, resolve
from lora_dpo.recipe.schema import ModelSection

_NEEDED = "an encoder of sentences"
_FIX = "Take one that averages its tokens, such as sentence-transformers/all-MiniLM-L6-v2."
_POOLING, _MEAN = "1_Pooling/config.json", "pooling_mode_mean_tokens"
_Item = tuple[str, References]


def is_encoder(architecture: str) -> bool:
    """Returns whether a model of this class can be an encoder of sentences."""
    bare = architecture.endswith("Model") and not architecture.endswith("LMHeadModel")
    return bare or architecture.endswith(("ForMaskedLM", "ForPreTraining"))


class EmbeddingJudge(Judge):
    """Scores an answer by its similarity to the references.

    The score is the largest cosine similarity to a correct reference minus the largest to an incorrect one, as with the
    similarity metrics of Lin, Hilton, Evans, TruthfulQA (2021), https://github.com/sylinrl/TruthfulQA, but on sentence
    embeddings: the mean of the last hidden states over a text's tokens, as Reimers and Gurevych, Sentence-BERT (2019),
    have it. The question is not read. Similar words with another meaning, such as a negation, are what it gets wrong.

    Args:
        work: How the forward passes are carried out.
        name: Encoder: Hub id or folder.
        batch_size: Answers judged at once, and texts read at once.

    Raises:
        UserError: The model cannot be loaded, or is no encoder that averages its tokens.
    """

    threshold = 0.0
    needs_references = True

    def __init__(self, work: Work, name: str, *, batch_size: int) -> None:
        if not is_encoder(architecture_of(name)):
            raise wrong_kind(name, _NEEDED, "", _FIX)
        _check_pooling(name)
        self.name = name
        self._work, self._batch_size = work, batch_size
        self._encoder = load_judge_model(name, AutoModel, _NEEDED, _FIX)
        self._known: dict[str, Tensor] = {}

    def scores(
        self, prompts: Sequence[Sequence[Message]], answers: Sequence[str], references: Sequence[References]
    ) -> list[float]:
        """Returns a score between -2 and 2 for each answer."""
        items = list(zip(answers, references, strict=True))
        names = [name_of(self._encoder.key, answer, *map(list, given)) for answer, given in items]
        return self._work.map(
            "similarity to references",
            items,
            names,
            self._compute,
            batch_size=self._batch_size,
            size=lambda item: max(map(len, _texts(item))),
        )

    def _compute(self, batch: list[_Item]) -> list[float]:
        self._embed(text for item in batch for text in _texts(item))
        return [
            self._nearest(answer, given.correct) - self._nearest(answer, given.incorrect) for answer, given in batch
        ]

    def _nearest(self, answer: str, others: Sequence[str]) -> float:
        return max(float(self._known[answer] @ self._known[other]) for other in others)

    @torch.no_grad()
    def _embed(self, texts: Iterable[str]) -> None:
        new = sorted({text for text in texts if text not in self._known}, key=len)  # so that little is padded
        for start in range(0, len(new), self._batch_size):
            part = new[start : start + self._batch_size]
            batch = self._encoder.batch(part)
            hidden = self._encoder.model(**batch).last_hidden_state.float()
            present = batch["attention_mask"][..., None]
            means = (hidden * present).sum(1) / present.sum(1)
            self._known |= zip(part, F.normalize(means, dim=1).cpu(), strict=True)


def _texts(item: _Item) -> tuple[str, ...]:
    answer, given = item
    return (answer, *given.correct, *given.incorrect)


def _check_pooling(name: str) -> None:
    """Refuses an encoder whose own settings say that a sentence is something else than the mean of its tokens."""
    with loading(name):
        file = cached_file(resolve(ModelSection(name=name)), _POOLING, _raise_exceptions_for_missing_entries=False)
    if file is None:
        return
    settings = json.loads(Path(file).read_text(encoding="utf-8"))
    modes = [key for key, on in settings.items() if key.startswith("pooling_mode_") and on is True]
    if modes and modes != [_MEAN]:
        raise wrong_kind(name, f"{_NEEDED} by their mean", f"Its {_POOLING} says {', '.join(modes)}.", _FIX)
