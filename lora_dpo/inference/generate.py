"""What `lora-dpo generate` does: answers every prompt of a file, in batches, and goes on where it was interrupted."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate.utils.memory import should_reduce_batch_size

from lora_dpo.console import note, tracked
from lora_dpo.data.prompts import PromptRow, read_prompts
from lora_dpo.errors import UserError
from lora_dpo.evaluation.work import Work
from lora_dpo.inference.answers_file import AnswersFile, check_place, open_answers
from lora_dpo.inference.chat_model import ChatModel
from lora_dpo.inference.found import Found
from lora_dpo.inference.sampling import Sampling
from lora_dpo.model.answering import Answer, room_after
from lora_dpo.model.base import resolve
from lora_dpo.model.hashes import weights_hash
from lora_dpo.model.precision import choose_dtype

_BATCHES_AHEAD = 8
"""Prompts of so many batches are sorted by length; as many answers at most are lost where a process is killed."""


@dataclass(frozen=True, slots=True)
class Request:
    """What is asked for.

    Attributes:
        found: What answers.
        source: File, folder or Hub id with the prompts.
        output: Where the answers go.
        sampling: How they are written; its seed is set.
        system: A system turn for prompts that have none, or the empty text.
        batch_size: Answers written at once.
        overwrite: Replace a file of answers that is there.
    """

    found: Found
    source: str
    output: Path
    sampling: Sampling
    system: str = ""
    batch_size: int = 8
    overwrite: bool = False


def generate(request: Request) -> None:
    """Answers all prompts that have no answer yet; see `Request`.

    An answer depends on its prompt, the model and the options alone, up to the rounding of its batch; batches are the
    same after an interruption, so the finished file is as well.

    Raises:
        UserError: The prompts cannot be read or are too long, or the answers cannot go to where they should.
    """
    check_place(request.output)
    if Path(request.source).expanduser().resolve() == request.output.resolve():
        raise UserError(f"{request.output} is both --input and --output.", fix="Name another --output.")
    rows = read_prompts(request.source, key="--input", system=request.system)
    model = ChatModel(request.found)
    prompts = [model.encoder.prompt_ids(row.turns) for row in rows]
    check_room([row.origin for row in rows], prompts, model.positions)
    settings = _settings(request, model, rows, prompts)
    with open_answers(request.output, settings, overwrite=request.overwrite) as file:
        if file.count:
            note(f"{request.output} holds {file.count} of {len(rows)} answers already.")
        cut = _answer_all(request, model, rows, prompts, file)
    note(f"{len(rows)} answers are in {request.output}." + f" Cut at their limit just now: {cut}." * bool(cut))


def _answer_all(
    request: Request, model: ChatModel, rows: Sequence[PromptRow], prompts: Sequence[list[int]], file: AnswersFile
) -> int:
    """Writes the missing answers in the rows' order; returns how many of them were cut."""
    found: dict[int, Answer] = {}
    cut = 0
    answers = _computed(model, prompts, request, file.count)
    for place, answer in tracked(answers, "answers", total=len(rows) - file.count):
        found[place] = answer
        ready = []
        while (index := file.count + len(ready)) in found:
            answer = found.pop(index)
            cut += not answer["ended"]
            ready.append(_line(index, rows[index], answer, request.found.name))
        if ready:
            file.append(ready)
    return cut


def _computed(
    model: ChatModel, prompts: Sequence[list[int]], request: Request, done: int
) -> Iterator[tuple[int, Answer]]:
    """Yields the answers that are missing; whole batches are computed, so that all are rounded as ever."""
    at_once = request.batch_size
    for batch in plan_batches(list(map(len, prompts)), request.batch_size):
        if max(batch) < done:
            continue
        found: list[Answer] = []
        while len(found) < len(batch):
            part = [prompts[place] for place in batch[len(found) : len(found) + at_once]]
            try:
                found += model.answers(part, request.sampling)
            except Exception as error:
                if not should_reduce_batch_size(error):
                    raise
                at_once = Work().smaller("answers", len(part), error)
        yield from ((place, answer) for place, answer in zip(batch, found, strict=True) if place >= done)


def check_room(origins: Sequence[str], prompts: Sequence[list[int]], positions: int | None) -> None:
    """Checks that each prompt can be answered, before the first one is.

    Args:
        origins: Where each prompt stands, for errors.
        prompts: The prompts, as token ids.
        positions: How many tokens the model can read; None is any number.

    Raises:
        UserError: A prompt leaves no position for an answer.
    """
    for origin, prompt in zip(origins, prompts, strict=True):
        try:
            room_after(len(prompt), positions, 1)
        except UserError as error:
            raise UserError(error.what, fix=error.fix, where=origin) from None


def plan_batches(lengths: Sequence[int], batch_size: int) -> list[list[int]]:
    """Divides prompts into batches of like lengths, near to the order in which they stand.

    Args:
        lengths: Tokens of each prompt.
        batch_size: Prompts a batch.

    Returns:
        The places of each batch's prompts. It depends on nothing else.
    """
    window = batch_size * _BATCHES_AHEAD
    batches = []
    for start in range(0, len(lengths), window):
        places = sorted(range(start, min(start + window, len(lengths))), key=lambda place: (lengths[place], place))
        cut = [places[first : first + batch_size] for first in range(0, len(places), batch_size)]
        batches += sorted(cut, key=min)  # so that the first lines can be written soon
    return batches


def _line(index: int, row: PromptRow, answer: Answer, model: str) -> dict[str, Any]:
    return {
        "index": index,
        **({} if row.id is None else {"id": row.id}),
        "prompt": row.shown,
        "answer": answer["text"],
        "model": model,
        "tokens": len(answer["ids"]),
        "ended": answer["ended"],
    }


def _settings(
    request: Request, model: ChatModel, rows: Sequence[PromptRow], prompts: Sequence[list[int]]
) -> dict[str, Any]:
    """Returns all that the answers depend on, in a form that can be compared and shown."""
    found = request.found
    base, revision = resolve(found.model), found.model.revision
    asked = [[row.id, row.shown, ids] for row, ids in zip(rows, prompts, strict=True)]
    return {
        "input": request.source,
        "count": len(prompts),
        "prompts_sha256": hashlib.sha256(json.dumps(asked, default=str).encode()).hexdigest(),
        "model": found.name,
        "weights_sha256": weights_hash(found.place, None) if found.is_adapter else weights_hash(base, revision),
        "base_sha256": weights_hash(base, revision) if found.is_adapter else None,
        "dtype": str(choose_dtype(found.model.dtype)).removeprefix("torch."),
        "four_bit": found.four_bit,
        "system": request.system,
        **dataclasses.asdict(request.sampling),
    }
