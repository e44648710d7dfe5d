"""Greedy answers of both policies in the formats that AlpacaEval and FastChat's MT-Bench read.

AlpacaEval 0.6.6 (https://github.com/tatsu-lab/alpaca_eval, `src/alpaca_eval/main.py`: `model_outputs`, `name`) reads a
JSON list of objects with `instruction`, `output`, `generator` and `dataset`, and pairs two files by `instruction`.

MT-Bench in FastChat 0.2.36 (https://github.com/lm-sys/FastChat, `fastchat/llm_judge/gen_model_answer.py` and
`common.py`: `load_questions`, `load_model_answers`) reads `question.jsonl` and, named after the model, one
`model_answer/NAME.jsonl`, of which each line has `question_id`, `answer_id`, `model_id`, `choices` and `tstamp`.
FastChat's own answers are sampled in some categories, at temperatures up to 0.7; these are all greedy.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NamedTuple

import torch

from lora_dpo.console import is_main_process
from lora_dpo.data.chat import TurnEncoder
from lora_dpo.data.files import read_rows
from lora_dpo.data.pair import Message
from lora_dpo.data.report import ReadReport
from lora_dpo.errors import UserError
from lora_dpo.evaluation.answers import write_answers
from lora_dpo.evaluation.policies import Policies
from lora_dpo.evaluation.work import Work, name_of
from lora_dpo.files import write_json, write_text


class Instruction(NamedTuple):
    """An instruction of AlpacaEval, and the data set that it comes from."""

    instruction: str
    dataset: str


class Dialogue(NamedTuple):
    """A question of MT-Bench; each turn is asked after the answers to those before it."""

    question_id: int
    category: str
    turns: list[str]


def read_alpaca_eval(file: Path) -> list[Instruction]:
    """Reads instructions in AlpacaEval's form: objects with `instruction`, and `dataset` if they like.

    Raises:
        UserError: The file cannot be read, or a row has no instruction.
    """
    rows = list(read_rows(file, "error", ReadReport()))
    return [
        Instruction(_text(row.values, "instruction", row.where), str(row.values.get("dataset", file.stem)))
        for row in rows
    ]


def read_mt_bench(file: Path) -> list[Dialogue]:
    """Reads questions in MT-Bench's form: objects with `question_id`, `category` and `turns`.

    Raises:
        UserError: The file cannot be read, a row lacks one of these, or two rows have one `question_id`.
    """
    dialogues: dict[int, Dialogue] = {}
    for row in read_rows(file, "error", ReadReport()):
        number, turns = row.values.get("question_id"), row.values.get("turns")
        if not isinstance(number, int) or isinstance(number, bool):
            raise UserError(f"question_id is {number!r}, not a whole number", where=row.where)
        if number in dialogues:
            raise UserError(f"question_id {number} was there before", where=row.where)
        if not isinstance(turns, list) or not turns or not all(isinstance(turn, str) for turn in turns):
            raise UserError(f"turns is {turns!r}, not a list of texts", where=row.where)
        dialogues[number] = Dialogue(number, _text(row.values, "category", row.where), turns)
    return list(dialogues.values())


def export_alpaca_eval(
    work: Work,
    policies: Policies,
    encoder: TurnEncoder,
    instructions: Sequence[Instruction],
    folder: Path,
    *,
    name: str,
    max_new_tokens: int,
    batch_size: int,
) -> list[Path]:
    """Answers instructions before and after, and writes one file for each; every process must call it.

    Args:
        work: How the forward passes are carried out.
        policies: The two policies.
        encoder: How turns become tokens.
        instructions: What is asked.
        folder: Where the files go.
        name: What the generators are called, with `-before` and `-after`.
        max_new_tokens: Longest answer in tokens.
        batch_size: Answers written at once.

    Returns:
        The files: before, after.
    """
    files = []
    for when, policy in _both(policies):
        with policy() as model:
            answered = answer_turns(
                work,
                model,
                encoder,
                [[each.instruction] for each in instructions],
                f"answers for AlpacaEval, {when}",
                max_new_tokens=max_new_tokens,
                batch_size=batch_size,
            )
        generator = f"{_file_name(name)}-{when}"
        rows = [
            {"instruction": each.instruction, "output": output, "generator": generator, "dataset": each.dataset}
            for each, (output,) in zip(instructions, answered, strict=True)
        ]
        files.append(folder / f"{generator}.json")
        if is_main_process():
            write_json(files[-1], rows)
    return files


def export_mt_bench(
    work: Work,
    policies: Policies,
    encoder: TurnEncoder,
    dialogues: Sequence[Dialogue],
    folder: Path,
    *,
    name: str,
    max_new_tokens: int,
    batch_size: int,
) -> list[Path]:
    """Answers dialogues before and after, and writes one file for each; every process must call it.

    Args:
        work: How the forward passes are carried out.
        policies: The two policies.
        encoder: How turns become tokens.
        dialogues: What is asked.
        folder: A benchmark's folder in FastChat's sense: the files go into its `model_answer`.
        name: What the models are called, with `-before` and `-after`.
        max_new_tokens: Longest answer in tokens.
        batch_size: Answers written at once.

    Returns:
        The files: before, after.
    """
    files = []
    for when, policy in _both(policies):
        with policy() as model:
            answered = answer_turns(
                work,
                model,
                encoder,
                [each.turns for each in dialogues],
                f"answers for MT-Bench, {when}",
                max_new_tokens=max_new_tokens,
                batch_size=batch_size,
            )
        model_id = f"{_file_name(name)}-{when}"
        rows = [_model_answer(each, model_id, turns) for each, turns in zip(dialogues, answered, strict=True)]
        files.append(folder / "model_answer" / f"{model_id}.jsonl")
        if is_main_process():
            _write_lines(files[-1], sorted(rows, key=lambda row: row["question_id"]))
    return files


def write_mt_bench_questions(dialogues: Sequence[Dialogue], folder: Path) -> Path:
    """Writes dialogues that come from elsewhere as the `question.jsonl` which FastChat's judge reads; rank 0 alone.

    Args:
        dialogues: What was asked.
        folder: The folder that `export_mt_bench` was given.
    """
    _write_lines(folder / "question.jsonl", [each._asdict() for each in dialogues])
    return folder / "question.jsonl"


def answer_turns(
    work: Work,
    model: torch.nn.Module,
    encoder: TurnEncoder,
    conversations: Sequence[Sequence[str]],
    what: str,
    *,
    max_new_tokens: int,
    batch_size: int,
) -> list[list[str]]:
    """Returns the greedy answer to each turn of each conversation, given after the answers to the turns before.

    Args:
        work: How the forward passes are carried out.
        model: A causal language model in evaluation mode.
        encoder: How turns become tokens.
        conversations: The user's turns of each conversation.
        what: What is written, in a few words that differ for each model.
        max_new_tokens: Longest answer in tokens.
        batch_size: Answers written at once.
    """
    answered: list[list[str]] = [[] for _ in conversations]
    for turn in range(max(map(len, conversations), default=0)):
        due = [place for place, turns in enumerate(conversations) if turn < len(turns)]
        prompts = [encoder.prompt_ids(_messages(conversations[place][: turn + 1], answered[place])) for place in due]
        written = write_answers(
            work, model, encoder, prompts, what, max_new_tokens=max_new_tokens, batch_size=batch_size
        )
        for place, answer in zip(due, written, strict=True):
            answered[place].append(answer["text"])
    return answered


def _messages(turns: Sequence[str], answers: Sequence[str]) -> list[Message]:
    said = [turns[0]]
    for answer, turn in zip(answers, turns[1:], strict=True):
        said += [answer, turn]
    return [{"role": ("user", "assistant")[place % 2], "content": text} for place, text in enumerate(said)]


def _both(policies: Policies) -> tuple[tuple[str, Callable[[], AbstractContextManager[torch.nn.Module]]], ...]:
    return ("before", policies.before), ("after", policies.after)


def _model_answer(dialogue: Dialogue, model_id: str, turns: list[str]) -> dict[str, Any]:
    return {
        "question_id": dialogue.question_id,
        "answer_id": name_of(model_id, dialogue.question_id, turns)[:22],
        "model_id": model_id,
        "choices": [{"index": 0, "turns": turns}],
        "tstamp": time.time(),
    }


def _text(values: Mapping[str, Any], key: str, where: str) -> str:
    if not isinstance(values.get(key), str):
        raise UserError(f"{key} is {values.get(key)!r}, not a text", where=where)
    return values[key]


def _write_lines(file: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    # All in ASCII: FastChat reads in the encoding of the machine.
    write_text(file, "".join(json.dumps(row) + "\n" for row in rows))


def _file_name(name: str) -> str:
    """Returns a name that can be a file's: FastChat calls a model by its file."""
    return re.sub(r"[^\w.-]+", "_", name)
