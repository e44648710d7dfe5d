"""What `lora-dpo chat` does: a conversation in a terminal, or one answer for a script."""

from __future__ import annotations

import dataclasses
import json
import sys

from lora_dpo.errors import UserError
from lora_dpo.inference.chat_model import ChatModel
from lora_dpo.inference.conversation import Conversation
from lora_dpo.inference.found import Found
from lora_dpo.inference.sampling import Sampling
from lora_dpo.inference.terminal import Terminal
from lora_dpo.inference.wrapping import printable


def chat(found: Found, sampling: Sampling, *, prompt: str | None, system: str, as_json: bool) -> None:
    """Talks in the terminal, or answers one prompt on stdout and returns.

    Args:
        found: What answers.
        sampling: How.
        prompt: The one prompt; None is what stdin holds, or a conversation where stdin is a terminal.
        system: What stands before the first turn, or the empty text.
        as_json: Whether the one answer is written as JSON.

    Raises:
        UserError: There is nothing to answer, it is too long, or there is no terminal to talk in.
    """
    text = _only_prompt(prompt, as_json=as_json)
    model = ChatModel(found)
    conversation = Conversation(model.encoder, model.positions, system)
    if text is None:
        Terminal(model, conversation, sampling).run()
    else:
        _answer_once(model, conversation, text, sampling.seeded(), as_json=as_json)


def _only_prompt(prompt: str | None, *, as_json: bool) -> str | None:
    """Returns the one prompt that is to be answered, or None for a conversation."""
    if prompt is not None:
        return _checked(prompt, "--prompt")
    if not sys.stdin.isatty():
        try:
            return _checked(sys.stdin.buffer.read().decode("utf-8"), "stdin")
        except UnicodeDecodeError as error:
            raise UserError(f"stdin is not UTF-8: byte 0x{error.object[error.start]:02x}.") from None
    if as_json or not sys.stdout.isatty():
        what = "--json is for one answer" if as_json else "stdout is not a terminal, so there can be no conversation"
        raise UserError(f"{what}.", fix='Give what is to be answered: --prompt "TEXT", or by stdin.')
    return None


def _checked(text: str, name: str) -> str:
    if not text.strip():
        raise UserError(f"{name} is empty: there is nothing to answer.")
    return text.strip()


def _answer_once(model: ChatModel, conversation: Conversation, text: str, sampling: Sampling, *, as_json: bool) -> None:
    question = conversation.ask(text, sampling.max_new_tokens)
    shown = printable if sys.stdout.isatty() else str  # a file or another program gets what the model wrote
    with model.write(question.prompt_ids, sampling) as writing:
        for piece in writing:
            if not as_json:
                sys.stdout.write(shown(piece))
                sys.stdout.flush()
        answer = writing.answer
    assert answer is not None  # the iteration has ended
    if as_json:
        whole = {
            "model": model.found.name,
            "prompt": text,
            "system": conversation.system,
            "answer": answer["text"],
            "tokens": len(answer["ids"]),
            "ended": answer["ended"],
            "sampling": dataclasses.asdict(sampling),
        }
        sys.stdout.write(json.dumps(whole, ensure_ascii=False, indent=2))
    sys.stdout.write("\n")
