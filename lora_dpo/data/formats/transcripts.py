r"""Conversations written as one text with `\n\nHuman:` and `\n\nAssistant:` marks.

Bai et al.: https://arxiv.org/abs/2204.05862; `Anthropic/hh-rlhf` and `yitingxie/rlhf-reward-datasets` on the Hub.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from lora_dpo.data.formats.base import BadRowError, Candidate, Format, Options, Values, messages, text_of, value_of
from lora_dpo.data.formats.conversation import shared_prompt
from lora_dpo.data.pair import Message

_MARK = re.compile(r"(?:\A\s*|\n\n[ \t]*)(Human|Assistant):")
_ROLES = {"Human": "user", "Assistant": "assistant"}
_ASSISTANT_FIRST = re.compile(r"\A\s*Assistant:")


def turns_of(text: str) -> tuple[Message, ...]:
    """Divides a transcript into turns, each without the white space around it.

    Raises:
        BadRowError: The text does not begin with a mark.
    """
    first = _MARK.match(text)
    if first is None:
        raise BadRowError(f"the transcript does not begin with 'Human:' or 'Assistant:' but with {text[:40]!r}")
    parts = _MARK.split(text)  # "", mark, content, mark, content, ...
    return tuple(
        {"role": _ROLES[mark], "content": content.strip()}
        for mark, content in zip(parts[1::2], parts[2::2], strict=True)
    )


def _convert_hh(row: Values, options: Options) -> list[Candidate]:
    prompt, better, worse = shared_prompt(_conversation(row, "chosen"), _conversation(row, "rejected"))
    return [Candidate(prompt, better, worse)]


def _conversation(row: Values, column: str) -> tuple[Message, ...]:
    value = value_of(row, column)
    return messages(value, f"column '{column}'") if isinstance(value, list) else turns_of(text_of(row, column))


def _convert_prompted(row: Values, options: Options) -> list[Candidate]:
    prompt = turns_of(text_of(row, "prompt"))
    if prompt[-1] == {"role": "assistant", "content": ""}:
        prompt = prompt[:-1]  # the prompt's closing "Assistant:" is where the answer begins
    return [Candidate(prompt, _bare_answer(row, "chosen"), _bare_answer(row, "rejected"))]


def _bare_answer(row: Values, column: str) -> str:
    return _ASSISTANT_FIRST.sub("", text_of(row, column)).strip()


def _is_hh(columns: set[str], rows: Sequence[Values]) -> bool:
    return columns >= {"chosen", "rejected"} and "prompt" not in columns


def _is_prompted(columns: set[str], rows: Sequence[Values]) -> bool:
    """Tells transcripts from plain prompts by the text: every prompt of the first rows must be one."""
    if not columns >= {"prompt", "chosen", "rejected"}:
        return False
    prompted = [row for row in rows if isinstance(row.get("prompt"), str) and row["prompt"].strip()]
    return bool(prompted) and all(_is_transcript_prompt(row) for row in prompted)


def _is_transcript_prompt(row: Values) -> bool:
    prompt = row["prompt"]
    if not re.match(r"\s*Human:", prompt):
        return False
    return prompt.rstrip().endswith("Assistant:") or bool(_ASSISTANT_FIRST.match(str(row.get("chosen"))))


HH_RLHF = Format(
    name="HH-RLHF (whole conversations)",
    columns="chosen, rejected ('Human: ... Assistant: ...' transcripts or lists of messages)",
    recognises=_is_hh,
    convert=_convert_hh,
)
PROMPTED_TRANSCRIPTS = Format(
    name="RLHF transcripts with prompts",
    columns="prompt ('Human: ... Assistant:'), chosen, rejected",
    recognises=_is_prompted,
    convert=_convert_prompted,
)
