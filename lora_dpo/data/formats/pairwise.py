"""Formats with one chosen and one rejected answer a row, beside a prompt."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from lora_dpo.data.formats.base import (
    BadRowError,
    Candidate,
    Format,
    Options,
    Values,
    message,
    messages,
    optional_text,
    prompt_of,
    text_of,
    value_of,
    with_system,
)
from lora_dpo.data.formats.conversation import shared_prompt
from lora_dpo.data.pair import Message, user

_ANSWERS = {"chosen", "rejected"}
_SCORES = frozenset({"score_chosen", "score_rejected"})
_NO_PREFERENCE = {"skip", "both_bad", "both_good"}


def convert_plain(row: Values, options: Options) -> list[Candidate]:
    """Makes the pair of a row with prompt, chosen and rejected, each a text or a list of messages.

    Lists in chosen and rejected hold the answer alone or the whole conversation (UltraFeedback binarised); then what
    they share is the prompt. Optional columns: `system`, `group`, and `choice` as `lora-dpo collect` writes it.

    Raises:
        BadRowError: A value is missing or of another kind, or the conversations cannot be divided.
    """
    if row.get("choice") in _NO_PREFERENCE or _margin_too_small(row, options):
        return []
    chosen, rejected = value_of(row, "chosen"), value_of(row, "rejected")
    if _is_conversation(chosen) and _is_conversation(rejected):
        prompt, better, worse = shared_prompt(
            messages(chosen, "column 'chosen'"), messages(rejected, "column 'rejected'")
        )
    else:
        prompt = prompt_of(value_of(row, "prompt"), "column 'prompt'")
        better, worse = answer_of(row, "chosen"), answer_of(row, "rejected")
    group = row.get("group")
    name = str(group) if group not in (None, "") else None
    return [Candidate(with_system(prompt, optional_text(row, "system")), better, worse, name)]


def answer_of(row: Values, column: str) -> str:
    """Reads an answer: a text, one assistant message, or a list of just that.

    Raises:
        BadRowError: It is something else.
    """
    value = value_of(row, column)
    if isinstance(value, str):
        return text_of(row, column)
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    elif isinstance(value, list):
        raise BadRowError(f"column '{column}' holds {len(value)} messages where one answer is expected")
    turn = message(value, f"column '{column}'")
    if turn["role"] != "assistant":
        raise BadRowError(f"column '{column}' holds a turn of the {turn['role']}, not of the assistant")
    return turn["content"]


def _is_conversation(value: Any) -> bool:
    return isinstance(value, list) and len(value) > 1


def _margin_too_small(row: Values, options: Options) -> bool:
    if options.min_margin <= 0 or not row.keys() >= _SCORES:
        return False
    try:
        return float(value_of(row, "score_chosen")) - float(value_of(row, "score_rejected")) < options.min_margin
    except (TypeError, ValueError):
        raise BadRowError("score_chosen and score_rejected are not both numbers") from None


def _convert_sharegpt(row: Values, options: Options) -> list[Candidate]:
    prompt = with_system(
        messages(value_of(row, "conversations"), "column 'conversations'"), optional_text(row, "system")
    )
    return [Candidate(prompt, answer_of(row, "chosen"), answer_of(row, "rejected"))]


def _convert_alpaca(row: Values, options: Options) -> list[Candidate]:
    question, context = text_of(row, "instruction"), optional_text(row, "input")
    last = user(f"{question}\n{context}" if context else question)
    prompt = with_system(history(row) + last, optional_text(row, "system"))
    return [Candidate(prompt, answer_of(row, "chosen"), answer_of(row, "rejected"))]


def history(row: Values) -> tuple[Message, ...]:
    """Reads the earlier rounds of a conversation, as LLaMA-Factory keeps them.

    Raises:
        BadRowError: They are no list of questions with answers.
    """
    rounds = row.get("history") or []
    turns: list[Message] = []
    for past in rounds if isinstance(rounds, list) else [rounds]:
        if not (isinstance(past, list) and len(past) == 2 and all(isinstance(text, str) for text in past)):
            raise BadRowError("column 'history' is not a list of [question, answer] texts")
        turns += [{"role": "user", "content": past[0]}, {"role": "assistant", "content": past[1]}]
    return tuple(turns)


def _convert_orca(row: Values, options: Options) -> list[Candidate]:
    column = "question" if "question" in row else "input"
    prompt = with_system(prompt_of(value_of(row, column), f"column '{column}'"), optional_text(row, "system"))
    return [Candidate(prompt, answer_of(row, "chosen"), answer_of(row, "rejected"))]


def _with(required: set[str], without: set[str] = frozenset()) -> Callable[[set[str], Sequence[Values]], bool]:
    return lambda columns, rows: columns >= required and not columns & without


def _is_plain(columns: set[str], rows: Sequence[Values]) -> bool:
    return "prompt" in columns and (columns >= _ANSWERS or "choice" in columns)


def _is_orca(columns: set[str], rows: Sequence[Values]) -> bool:
    return columns >= _ANSWERS and bool(columns & {"question", "input"}) and "prompt" not in columns


SHAREGPT = Format(
    name="ShareGPT ranking (LLaMA-Factory)",
    columns="conversations: [{from, value}], chosen, rejected [, system]",
    recognises=_with({"conversations", *_ANSWERS}),
    convert=_convert_sharegpt,
)
ALPACA = Format(
    name="Alpaca ranking (LLaMA-Factory)",
    columns="instruction, chosen, rejected [, input, system, history]",
    recognises=_with({"instruction", *_ANSWERS}, without={"prompt"}),
    convert=_convert_alpaca,
)
ORCA = Format(
    name="Orca pairs",
    columns="question or input, chosen, rejected [, system]",
    recognises=_is_orca,
    convert=_convert_orca,
)
ULTRAFEEDBACK = Format(
    name="UltraFeedback (binarised)",
    columns="prompt, chosen, rejected, score_chosen, score_rejected",
    recognises=_with({"prompt", *_ANSWERS, *_SCORES}),
    convert=convert_plain,
    scores=_SCORES,
)
PLAIN = Format(
    name="prompt, chosen, rejected",
    columns="prompt, chosen, rejected (texts or lists of messages) [, system, group, choice]",
    recognises=_is_plain,
    convert=convert_plain,
)
