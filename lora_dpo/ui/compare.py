"""What `lora-dpo compare` does: the answers of base and tuned model to the same questions, side by side."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich.live import Live

from lora_dpo.console import note, out, tracked
from lora_dpo.data.formats.base import with_system
from lora_dpo.errors import UserError
from lora_dpo.evaluation.subjects import find
from lora_dpo.inference.chat_model import ChatModel
from lora_dpo.inference.found import find_model
from lora_dpo.inference.generate import check_room, plan_batches
from lora_dpo.inference.sampling import Sampling
from lora_dpo.model.answering import Answer
from lora_dpo.ui.panels import answers_panel, cut_text, question_panel
from lora_dpo.ui.questions import Turns, held_out_questions, read_questions

_BATCH = 8


@dataclass(frozen=True, slots=True)
class Request:
    """What is asked for.

    Attributes:
        subject: Run, adapter or merged model, or a Hub id of one.
        sampling: How both write.
        questions: How many of the held-out ones, or a file.
        base: The model before the training, if it is not where it is said to be.
        overrides: `model.KEY=VALUE` words.
        system: A system turn for questions that have none, or the empty text.
    """

    subject: str
    sampling: Sampling
    questions: str = "3"
    base: str | None = None
    overrides: Sequence[str] = ()
    system: str = ""


def compare(request: Request, *, as_json: bool) -> None:
    """Prints both answers to each question.

    Args:
        request: What is asked for.
        as_json: Whether to print them for machines.

    Raises:
        UserError: The model does not say what it was before, or there are no such questions.
    """
    questions = questions_of(request)
    model = both_models(request)
    prompts = [model.encoder.prompt_ids(turns) for turns in questions]
    check_room([f"question {number}" for number in range(1, len(prompts) + 1)], prompts, model.positions)
    sampling = request.sampling.seeded()
    if out.is_terminal and not out.is_dumb_terminal and not as_json:
        _stream(model, questions, prompts, sampling)
        return
    answers = _answers(model, prompts, sampling)
    if as_json:
        out.print_json(json.dumps(_as_json(request.subject, model, sampling, questions, answers)))
        return
    titles = _titles(model)
    for number, (turns, pair) in enumerate(zip(questions, answers, strict=True), start=1):
        out.print(question_panel(turns, f"Question {number} of {len(questions)}"))
        out.print(answers_panel(titles, [cut_text(one["text"], one["ended"]) for one in pair], out.width))


def questions_of(request: Request) -> list[Turns]:
    """Returns the questions that a request asks.

    Raises:
        UserError: There are none such.
    """
    if not request.questions.isdecimal():
        return read_questions(request.questions, key="--questions", system=request.system)
    count = int(request.questions)
    if count < 1:
        raise UserError("--questions is 0, so there is nothing to compare.", fix="Give a number from 1, or a file.")
    held_out = held_out_questions(find(request.subject).run)
    if len(held_out) < count:
        note(f"--questions is {count}, but there are {len(held_out)}: all of them are asked.")
    return [with_system(turns, request.system) for turns in held_out[:count]]


def both_models(request: Request) -> ChatModel:
    """Returns the model, loaded, that answers with the training and without it.

    Raises:
        UserError: It does not say which model it was before.
    """
    found = find_model(request.subject, base=request.base, overrides=request.overrides)
    if found.base is None:
        raise UserError(
            f"{request.subject} does not say which model it was before the training, so there is nothing to compare.",
            fix="Name it: --base MODEL.",
        )
    model = ChatModel(found)
    model.load(base=True)  # at once: the side whose first answer is late would be known for the base
    return model


def _titles(model: ChatModel) -> tuple[str, str]:
    return f"base: {model.base_name}", f"tuned: {model.found.name}"


def _stream(model: ChatModel, questions: Sequence[Turns], prompts: Sequence[Sequence[int]], sampling: Sampling) -> None:
    """Shows the answers while they are written."""
    titles = _titles(model)
    for number, (turns, prompt) in enumerate(zip(questions, prompts, strict=True), start=1):
        out.print(question_panel(turns, f"Question {number} of {len(questions)}"))
        texts = ["", ""]
        with Live(console=out, transient=True, auto_refresh=False, vertical_overflow="ellipsis") as live:
            for place in _written(model, prompt, sampling, texts):
                texts[place] = texts[place].lstrip()
                live.update(answers_panel(titles, texts, out.width), refresh=True)
        out.print(answers_panel(titles, texts, out.width))


def _written(model: ChatModel, prompt: Sequence[int], sampling: Sampling, texts: list[str]) -> Iterator[int]:
    """Writes both answers into `texts`, and yields which one has grown."""
    for place in (0, 1):
        with model.write(prompt, sampling, base=place == 0) as writing:
            for piece in writing:
                texts[place] += piece
                yield place
            assert writing.answer is not None  # the iteration has ended
            texts[place] = cut_text(writing.answer["text"], writing.answer["ended"])
            yield place


def _answers(model: ChatModel, prompts: Sequence[list[int]], sampling: Sampling) -> list[tuple[Answer, Answer]]:
    """Returns the answers of base and tuned model, written in batches."""
    batches = plan_batches(list(map(len, prompts)), _BATCH)
    found: dict[int, tuple[Answer, Answer]] = {}
    for places in tracked(batches, "answers"):
        asked = [prompts[place] for place in places]
        before, after = (model.answers(asked, sampling, base=base) for base in (True, False))
        found |= zip(places, zip(before, after, strict=True), strict=True)
    return [found[place] for place in range(len(prompts))]


def _as_json(
    subject: str,
    model: ChatModel,
    sampling: Sampling,
    questions: Sequence[Turns],
    answers: Sequence[tuple[Answer, Answer]],
) -> dict[str, Any]:
    return {
        "subject": subject,
        "base": model.base_name,
        "sampling": asdict(sampling),
        "questions": [
            {"prompt": list(turns), "base": _one(before), "tuned": _one(after)}
            for turns, (before, after) in zip(questions, answers, strict=True)
        ],
        "mean_tokens": {
            name: sum(len(pair[place]["ids"]) for pair in answers) / len(answers)
            for place, name in enumerate(("base", "tuned"))
        },
    }


def _one(answer: Answer) -> dict[str, Any]:
    return {"text": answer["text"], "tokens": len(answer["ids"]), "ended": answer["ended"]}
