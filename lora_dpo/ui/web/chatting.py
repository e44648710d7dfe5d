"""The page on which one talks to a model, with its adapter on or off."""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncIterator, Sequence
from typing import Any

from anyio import to_thread
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from lora_dpo.data.pair import Message
from lora_dpo.errors import UserError
from lora_dpo.inference.chat_model import ChatModel
from lora_dpo.inference.conversation import Conversation, Question
from lora_dpo.inference.sampling import Sampling
from lora_dpo.ui.web.app import Site
from lora_dpo.ui.web.requests import LONGEST_TEXT, Values, is_number, pieces, read_json, streamed, text_of

_MOST_TURNS = 400
_MOST_TOKENS = 8192
_WHOLE = ("max_new_tokens", "top_k", "seed")


def chat_site(model: ChatModel, sampling: Sampling, system: str) -> Site:
    """Returns the page of a model. A conversation is kept by the browser and comes with each question.

    Args:
        model: What answers.
        sampling: How, unless a browser asks for something else.
        system: What stands before the first turn, or the empty text.
    """

    async def chat(request: Request) -> Response:
        values = await read_json(request)
        *earlier, last = _turns(values.get("messages"))
        own = _sampling(sampling, values.get("sampling", {}))
        base = values.get("base") is True
        if base and model.base_name is None:
            raise UserError(f"{model.found.name} does not say which model it was before the training.")
        conversation = Conversation(model.encoder, model.positions, system, list(earlier))
        question = await to_thread.run_sync(conversation.ask, last["content"], own.max_new_tokens)
        return streamed(_answer(model, question, own.seeded(), base=base))

    about = {
        "model": model.found.name,
        "base": model.base_name,
        "switch": "adapter" if model.found.is_adapter else "training",
        "sampling": dataclasses.asdict(sampling),
    }
    return Site("chat", about, [Route("/api/chat", chat, methods=["POST"])])


async def _answer(model: ChatModel, question: Question, sampling: Sampling, *, base: bool) -> AsyncIterator[Values]:
    if question.forgotten:
        yield {"forgotten": question.forgotten}
    writing = model.write(question.prompt_ids, sampling, base=base)
    async for piece in pieces(writing):
        yield {"text": piece}
    answer = writing.answer
    assert answer is not None  # the iteration has ended
    yield {"ended": answer["ended"], "tokens": len(answer["ids"]), "seed": sampling.seed}


def _turns(values: Any) -> Sequence[Message]:
    """Checks the conversation that a browser sends: question and answer in turn, a question last."""
    if not isinstance(values, list) or not 0 < len(values) <= _MOST_TURNS or len(values) % 2 == 0:
        raise UserError(f"A conversation has 1 to {_MOST_TURNS} turns, and a question is the last one.")
    turns: list[Message] = []
    for number, value in enumerate(values):
        role = "assistant" if number % 2 else "user"
        if not isinstance(value, dict) or value.get("role") != role:
            raise UserError(f"Turn {number + 1} of the conversation is not one of the {role}.")
        is_last = number == len(values) - 1  # answers may be longer than what people write
        turns.append({"role": role, "content": text_of(value, "content", longest=LONGEST_TEXT if is_last else None)})
    if not turns[-1]["content"].strip():
        raise UserError("The question is empty.")
    return turns


def _sampling(known: Sampling, values: Any) -> Sampling:
    if not isinstance(values, dict):
        raise UserError("'sampling' is no object.")
    for name, value in values.items():
        known = known.with_word(f"{name}={_word(name, value)}")
    if known.max_new_tokens > _MOST_TOKENS:
        raise UserError(f"max_new_tokens is {known.max_new_tokens}; at most {_MOST_TOKENS} are written at once.")
    return known


def _word(name: str, value: Any) -> str:
    """Returns a value as `Sampling.with_word` reads it; a browser's numbers know no difference between 5 and 5.0."""
    if value is None and name == "seed":
        return "none"
    if not is_number(value):
        raise UserError(f"{str(name)[:40]} is no number.")
    return str(int(value)) if name in _WHOLE and value == int(value) else str(value)
