"""How a question is put before its answers are scored: as the model was taught to chat, or as a benchmark puts it."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import resources
from typing import TYPE_CHECKING, Literal

from lora_dpo.data.chat import TurnEncoder
from lora_dpo.data.pair import Message
from lora_dpo.evaluation.scoring import Scored

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PromptStyle = Literal["chat", "harness"]


def render(style: PromptStyle, encoder: TurnEncoder, prompt: Sequence[Message]) -> str:
    """Returns the text before the answers."""
    return encoder.render(prompt) if style == "chat" else _benchmark_text(prompt)


def encode(style: PromptStyle, encoder: TurnEncoder, prompt: Sequence[Message], answers: Sequence[str]) -> list[Scored]:
    """Returns prompt and completion of each answer, as token ids.

    `chat` is what the model was trained on, template and end of turn included. `harness` is the text and tokenisation
    of lm-evaluation-harness's tasks truthfulqa_mc1 (version 2.0) and truthfulqa_mc2 (3.0): six examples, which are the
    `QA` prompt of Lin et al. (2021), appendix E, then the question, and each answer after a space.

    Args:
        style: Which of the two.
        encoder: The model's template and tokenizer.
        prompt: The question's turns; `harness` reads the last one.
        answers: The answers.
    """
    if style == "chat":
        return encoder.encode_answers(prompt, answers)
    context = _benchmark_text(prompt)
    return [_continued(encoder.tokenizer, context, f" {answer}") for answer in answers]


def _continued(tokenizer: PreTrainedTokenizerBase, context: str, continuation: str) -> Scored:
    """Tokenises context and continuation as one text, and cuts where the context's own tokens end."""
    start, whole = tokenizer.encode(context), tokenizer.encode(context + continuation)
    return start, whole[len(start) :]


def _benchmark_text(prompt: Sequence[Message]) -> str:
    examples = resources.files("lora_dpo.evaluation").joinpath("qa_prompt.txt").read_text(encoding="utf-8")
    return f"{examples}Q: {prompt[-1]['content']}\nA:"
