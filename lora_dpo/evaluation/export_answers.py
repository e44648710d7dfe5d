"""What `lora-dpo eval --export` does: answers for the judges of AlpacaEval and MT-Bench, which run elsewhere."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from lora_dpo.console import is_main_process, note
from lora_dpo.data.chat import TokenisedPair
from lora_dpo.data.pair import Message
from lora_dpo.errors import UserError
from lora_dpo.evaluation.evaluate import Subject
from lora_dpo.evaluation.export import (
    Dialogue,
    Instruction,
    export_alpaca_eval,
    export_mt_bench,
    read_alpaca_eval,
    read_mt_bench,
    write_mt_bench_questions,
)
from lora_dpo.evaluation.work import Work
from lora_dpo.recipe.schema import EvaluationSection

Kind = Literal["alpaca-eval", "mt-bench"]
MAX_NEW_TOKENS = 1024
"""Longest exported answer, as in FastChat (most models of AlpacaEval had 2048); the model's context bounds it too."""


@dataclass(frozen=True, slots=True)
class Export:
    """What is to be answered, and for whom.

    Attributes:
        kind: The judge's benchmark.
        instructions: For AlpacaEval; None takes the held-out questions.
        dialogues: For MT-Bench.
    """

    kind: Kind
    instructions: list[Instruction] | None = None
    dialogues: tuple[Dialogue, ...] = ()


def read_export(kind: Kind, questions: Path | None) -> Export:
    """Reads the questions that are to be answered.

    Args:
        kind: The judge's benchmark.
        questions: A file in its form; None takes held-out questions, which MT-Bench has none of.

    Raises:
        UserError: The file is missing, or not in this form.
    """
    if kind == "mt-bench":
        if questions is None:
            raise UserError(
                "--export mt-bench needs --questions FILE.",
                why="MT-Bench is its own 80 questions of two turns.",
                fix="Fetch fastchat/llm_judge/data/mt_bench/question.jsonl from https://github.com/lm-sys/FastChat.",
            )
        return Export(kind, dialogues=tuple(read_mt_bench(questions)))
    return Export(kind, None if questions is None else read_alpaca_eval(questions))


def write_export(
    export: Export, work: Work, subject: Subject, folder: Path, options: EvaluationSection, *, name: str, dataset: str
) -> list[Path]:
    """Answers the questions before and after; every process must call it.

    Args:
        export: What is to be answered.
        work: How the forward passes are carried out.
        subject: The model before and after, and its held-out pairs.
        folder: The results' folder; the files go into one of their own in it.
        options: Length of the answers, and how many are written at once.
        name: What the generators are called.
        dataset: What held-out questions are called.

    Returns:
        The files: before, after.

    Raises:
        UserError: There is no question.
    """
    lengths = {"max_new_tokens": options.max_new_tokens, "batch_size": options.batch_size}
    if export.kind == "mt-bench":
        target = folder / "mt_bench"
        files = export_mt_bench(work, subject.policies, subject.encoder, export.dialogues, target, name=name, **lengths)
        if is_main_process():
            write_mt_bench_questions(export.dialogues, target)
        return files
    asked = export.instructions if export.instructions is not None else held_out(subject.pairs, dataset)
    target = folder / "alpaca_eval"
    return export_alpaca_eval(work, subject.policies, subject.encoder, asked, target, name=name, **lengths)


def held_out(pairs: Sequence[TokenisedPair], dataset: str) -> list[Instruction]:
    """Returns the questions of held-out pairs as instructions, each once.

    Raises:
        UserError: None of them is a single turn, which is all that AlpacaEval knows.
    """
    prompts: dict[str, tuple[Message, ...]] = {}
    for pair in pairs:
        prompts.setdefault(pair.pair.group, pair.pair.prompt)
    single = [prompt[0]["content"] for prompt in prompts.values() if len(prompt) == 1]
    if not single:
        raise UserError(
            "There is no held-out question of a single turn to export.",
            fix="Name a test set with --data FILE, or instructions in AlpacaEval's form with --questions FILE.",
        )
    if len(single) < len(prompts):
        note(f"Left out: {len(prompts) - len(single)} conversations of several turns, which AlpacaEval cannot ask.")
    return [Instruction(text, dataset) for text in dict.fromkeys(single)]


def how_to_judge(kind: Kind, files: Sequence[Path]) -> str:
    """Returns the command that has the answers judged.

    Args:
        kind: The judge's benchmark.
        files: What `write_export` wrote.
    """
    before, after = files
    if kind == "alpaca-eval":
        return shlex.join(["alpaca_eval", "--model_outputs", str(after), "--reference_outputs", str(before)])
    return (
        f"in FastChat's fastchat/llm_judge: cp {shlex.quote(str(after.parent.resolve()))}/*.jsonl "
        f"data/mt_bench/model_answer/ && python gen_judgment.py --model-list {before.stem} {after.stem}"
    )
