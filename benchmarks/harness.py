"""lm-evaluation-harness's own TruthfulQA tasks, on questions from here instead of the Hub."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lora_dpo.data.question import Question

TASKS = ("local_mc1", "local_mc2")


class Harness:
    """The package's tasks `truthfulqa_mc1` and `truthfulqa_mc2`, with their data replaced.

    Args:
        questions: The questions.
        folder: Where the tasks and the questions are written.
    """

    def __init__(self, questions: Sequence[Question], folder: Path) -> None:
        import lm_eval
        from lm_eval.tasks import TaskManager

        data = folder / "questions.jsonl"
        data.write_text("".join(json.dumps(_as_row(question)) + "\n" for question in questions), encoding="utf-8")
        own = Path(lm_eval.__file__).parent / "tasks" / "truthfulqa"
        shutil.copy(own / "utils.py", folder)
        for name in ("truthfulqa_mc1.yaml", "truthfulqa_mc2.yaml"):
            text = (own / name).read_text(encoding="utf-8")
            for old, new in (
                ("dataset_path: truthfulqa/truthful_qa", "dataset_path: json"),
                ("dataset_name: multiple_choice", f"dataset_kwargs: {{data_files: {{validation: {data}}}}}"),
                ("task: truthfulqa_mc", "task: local_mc"),
                ("  - truthfulqa\n", "  - local\n"),
            ):
                text = text.replace(old, new)
            (folder / name).write_text(text, encoding="utf-8")
        self._tasks = TaskManager(include_path=str(folder), include_defaults=False)

    def run(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, batch_size: int
    ) -> dict[str, list[dict[str, Any]]]:
        """Returns what the harness found, question by question, for each of `TASKS`."""
        from lm_eval import simple_evaluate
        from lm_eval.models.huggingface import HFLM

        with torch.no_grad():
            found = simple_evaluate(
                model=HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch_size, device=str(model.device)),
                tasks=list(TASKS),
                task_manager=self._tasks,
                log_samples=True,
                bootstrap_iters=0,
                verbosity="ERROR",
            )
        return {
            task: sorted(samples, key=lambda sample: sample["doc_id"]) for task, samples in found["samples"].items()
        }


def _as_row(question: Question) -> dict[str, Any]:
    """Returns a question as the Hub's multiple-choice configuration has it."""
    wrong, right = len(question.incorrect), len(question.correct)
    return {
        "question": question.prompt[-1]["content"],
        "mc1_targets": {"choices": [question.best, *question.incorrect], "labels": [1] + [0] * wrong},
        "mc2_targets": {"choices": [*question.correct, *question.incorrect], "labels": [1] * right + [0] * wrong},
    }
