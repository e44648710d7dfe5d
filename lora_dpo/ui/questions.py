"""The questions that are asked: a file's, those that come with lora-dpo, or some of a run's held-out ones."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from lora_dpo.console import note
from lora_dpo.data.manifest import read_data
from lora_dpo.data.pair import Message
from lora_dpo.data.prompts import read_prompts
from lora_dpo.recipe.run_folder import RunFolder
from lora_dpo.ui.drafts import question_id

Turns = tuple[Message, ...]

SCIENCE = Path(__file__).with_name("science_questions.txt")
"""Fifty questions of everyday science, written for this project."""


def read_questions(path: str | None, *, key: str, system: str = "") -> list[Turns]:
    """Reads questions, each once, in their order.

    Args:
        path: A file as `lora-dpo generate` takes it; None takes the questions that come with lora-dpo.
        key: What names the path, for errors.
        system: A system turn for those that have none, or the empty text.

    Raises:
        UserError: They cannot be read.
    """
    rows = read_prompts(str(SCIENCE) if path is None else path, key=key, system=system)
    questions = _distinct(row.turns for row in rows)
    if len(questions) < len(rows):
        note(f"{len(rows) - len(questions)} of {len(rows)} questions stand there twice and are asked once.")
    return questions


def held_out_questions(run: RunFolder | None) -> list[Turns]:
    """Returns the questions on which a run was tested; those that come with lora-dpo where there are none."""
    if run is not None and run.data.is_dir() and (held_out := read_data(run.data)["test"]):
        return _distinct(one.prompt for one in held_out)
    return read_questions(None, key="--questions")


def _distinct(questions: Iterable[Turns]) -> list[Turns]:
    return list({question_id(turns): turns for turns in questions}.values())
