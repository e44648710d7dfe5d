"""Whether a merged model still is the model that was trained: measured on probes, judged by bounds."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from itertools import takewhile
from typing import Any, TypedDict

import torch

from lora_dpo.data.chat import TurnEncoder
from lora_dpo.errors import UserError
from lora_dpo.evaluation.answers import write_answers
from lora_dpo.evaluation.logits import scored_logits
from lora_dpo.evaluation.work import Work
from lora_dpo.merging.agreement import Agreement, Opened, compare
from lora_dpo.merging.probes import Probes
from lora_dpo.tree.sequences import Completion

_ANSWERS = 3
_ANSWER_TOKENS = 12
"""Each of them reads the whole model once."""
_LARGEST_LOSS = 0.25
"""Of the adapters' effect: a KL grows with the square of a change, so this is half of the change gone."""
_NO_EFFECT = 1e-9
"""KL in nats below which adapters do nothing that float32 could tell."""
_FINER = "Merge with --dtype fp32, which keeps the adapters' smallest changes."


@dataclass(frozen=True, slots=True)
class Bounds:
    """What still is rounding.

    Attributes:
        top1_agreement: At least.
        kl_mean: At most, in nats a token.
        logp_max_abs: At most, in nats.
    """

    top1_agreement: float
    kl_mean: float
    logp_max_abs: float

    def exceeded(self, found: Agreement) -> list[str]:
        """Returns what is outside of the bounds, in words."""
        outside = []
        if not found.top1_agreement >= self.top1_agreement:  # in this form NaN is outside
            outside.append(f"top-1 agreement is {found.top1_agreement:.2%}, not at least {self.top1_agreement:.2%}")
        if not found.kl_mean <= self.kl_mean:
            outside.append(f"KL is {found.kl_mean:.2e} nats a token, not at most {self.kl_mean:.0e}")
        if not found.logp_max_abs <= self.logp_max_abs:
            outside.append(f"a log-prob is {found.logp_max_abs:.3g} nats off, not at most {self.logp_max_abs:g}")
        return outside


_EXACT = Bounds(0.99, 1e-6, 0.01)
BOUNDS = {
    torch.float64: _EXACT,
    torch.float32: _EXACT,
    torch.float16: Bounds(0.97, 1e-4, 0.2),
    torch.bfloat16: Bounds(0.9, 5e-3, 2.0),
}
"""By the precision of the merged weights; docs/merge.md says what was measured."""


class Answer(TypedDict):
    """A question and both models' greedy answers, or their beginnings: the merged one's up to where they part."""

    question: str
    expected: str
    merged: str


@dataclass(frozen=True, slots=True)
class Verdict:
    """What was found of a merged model.

    Attributes:
        merged: Its distance from the base with the adapters.
        untrained: The distance of the base without them: what there was to keep.
        dtype: Precision of its weights.
        answers: Greedy answers side by side.
    """

    merged: Agreement
    untrained: Agreement
    dtype: torch.dtype
    answers: list[Answer]

    def as_json(self) -> dict[str, Any]:
        """Returns it as merge_report.json has it."""
        return {
            "dtype": _name(self.dtype),
            **asdict(self.merged),
            "bounds": asdict(BOUNDS[self.dtype]),
            "untrained": asdict(self.untrained),
            "answers": self.answers,
        }

    def check(self) -> None:
        """Refuses a model that is not the one that was trained.

        Raises:
            UserError: It is outside of the bounds, or has lost the better part of what the adapters do.
        """
        name, finer = _name(self.dtype), "" if BOUNDS[self.dtype] is _EXACT else _FINER
        if outside := BOUNDS[self.dtype].exceeded(self.merged):
            raise UserError(
                "The merged model is not the one that was trained, so it was not kept.",
                why=f"On the probes, in {name}: {'; '.join(outside)}.",
                fix=finer or "Please report this: the adapters may be of a kind that is merged wrongly.",
            )
        lost = self.merged.kl_mean / max(self.untrained.kl_mean, _NO_EFFECT)
        if self.untrained.kl_mean > _NO_EFFECT and lost > _LARGEST_LOSS:
            raise UserError(
                "The merged model has lost what the adapters do, so it was not kept.",
                why=f"Their whole effect is a KL of {self.untrained.kl_mean:.2e} nats a token, and rounding to {name} "
                f"is {self.merged.kl_mean:.2e}: changes that small are below the weights' last digit.",
                fix=finer or "Train longer, or with a higher learning rate.",
            )


def judge(
    expected: Opened,
    merged: Opened,
    untrained: Opened,
    probes: Probes,
    encoder: TurnEncoder,
    dtype: torch.dtype,
) -> Verdict:
    """Measures a merged model.

    Args:
        expected: The base with the adapters on it.
        merged: The merged model.
        untrained: The base without them.
        probes: What they read.
        encoder: The model's template and tokenizer.
        dtype: Precision of the merged weights.
    """
    found = compare(expected, {"merged": merged, "untrained": untrained}, probes)
    return Verdict(found["merged"], found["untrained"], dtype, _answers(expected, merged, probes, encoder))


def _answers(expected: Opened, merged: Opened, probes: Probes, encoder: TurnEncoder) -> list[Answer]:
    """Writes greedy answers by the one model, and finds out where the other would go on otherwise.

    It writes the same tokens up to the first after which it finds another one the most likely: one forward pass shows
    that, where writing takes one a token.
    """
    prompts = probes.prompts[:_ANSWERS]
    with torch.no_grad(), expected() as model:
        written = write_answers(
            Work(), model, encoder, prompts, "answers", max_new_tokens=_ANSWER_TOKENS, batch_size=_ANSWERS
        )
    sequences = [Completion.of(prompt, answer["ids"]) for prompt, answer in zip(prompts, written, strict=True)]
    with torch.no_grad(), merged() as model:
        found = scored_logits(model, sequences).argmax(-1).cpu()
    others = found.split([sequence.n_scored for sequence in sequences])
    return [
        {
            "question": question,
            "expected": answer["text"],
            "merged": _text(encoder, _as_far_as_known(answer["ids"], other.tolist())),
        }
        for question, answer, other in zip(probes.questions, written, others, strict=False)
    ]


def _text(encoder: TurnEncoder, ids: list[int]) -> str:
    return encoder.tokenizer.decode(ids, skip_special_tokens=True).strip()


def _as_far_as_known(written: list[int], other: list[int]) -> list[int]:
    same = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(written, other, strict=True)))
    return other[: same + 1]


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
