"""Measures what is not being trained: a finished run once more, an adapter, a model."""

from __future__ import annotations

import json
import os
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState

from lora_dpo.console import note
from lora_dpo.errors import UserError
from lora_dpo.evaluation.asked import Asked
from lora_dpo.evaluation.evaluate import evaluate
from lora_dpo.evaluation.export_answers import Export, write_export
from lora_dpo.evaluation.harness import Tasks, run_tasks
from lora_dpo.evaluation.held_out import UNKNOWN_TRAINING
from lora_dpo.evaluation.load import Loaded, base_hash, load
from lora_dpo.evaluation.outcomes import write_outcomes
from lora_dpo.evaluation.plots import draw_run
from lora_dpo.evaluation.prompts import PromptStyle
from lora_dpo.evaluation.report import Report, write_report
from lora_dpo.evaluation.result_plots import draw_results
from lora_dpo.evaluation.work import Work, kept_values
from lora_dpo.model.base import resolve
from lora_dpo.model.hashes import weights_hash
from lora_dpo.recipe.schema import ModelSection
from lora_dpo.training.agreement import from_first, on_first
from lora_dpo.training.resume import origin_of

_LONGEST_WAIT = timedelta(weeks=4)
"""How long a process waits for the others' share of the work: without GPUs that of a harness task can take days."""
_CONFIGURATION = ("adapter_config.json", "config.json")


def measure(asked: Asked, style: PromptStyle, tasks: Tasks | None = None) -> dict[str, Any]:
    """Measures before and after and writes the report; values that are known are not computed again.

    Args:
        asked: What is measured, on what, and where the report goes.
        style: How multiple-choice questions are put.
        tasks: Tasks of lm-evaluation-harness, if any are to be run besides.

    Returns:
        The report, as JSON.

    Raises:
        UserError: It cannot be measured.
    """
    join_processes()
    loaded = load(asked)
    work = _work(asked)
    _say_what_is_compared(asked, loaded)
    recipe, subject = asked.recipe, loaded.subject
    measured = evaluate(work, subject, recipe, style)
    harness = None
    if tasks is not None:
        tokenizer, at_once = subject.encoder.tokenizer, recipe.evaluation.batch_size
        harness = run_tasks(work, subject.policies, tokenizer, tasks, batch_size=at_once)
    report = Report(
        recipe=recipe,
        data=loaded.held_out.counts,
        training=_training(asked),
        measured=measured,
        caveats=loaded.held_out.caveats,
        subject=None if asked.is_own_report else from_first(lambda: _identity(asked)),
        harness=harness,
    )
    on_first(lambda: _write(asked, report))
    return report.as_json()


def export(asked: Asked, answers: Export) -> list[Path]:
    """Writes answers before and after for a judge that runs elsewhere; no report.

    Args:
        asked: What answers.
        answers: What is to be answered.

    Returns:
        The files: before, after.

    Raises:
        UserError: It cannot answer, or there is no question.
    """
    join_processes()
    loaded = load(asked)
    dataset = asked.data or asked.recipe.data.sources()[0].path
    options, name = asked.recipe.evaluation, asked.named.name
    work = _work(asked)
    return write_export(answers, work, loaded.subject, asked.output.path, options, name=name, dataset=dataset)


def join_processes() -> None:
    """Makes the processes that a launcher has started known to each other.

    Raises:
        UserError: They do not find each other; each would measure everything, and write the same files.
    """
    several = int(os.environ.get("WORLD_SIZE", "1"))
    # Without GPUs Accelerate takes each process for one of its own unless it is told that this is meant.
    state = PartialState(cpu=several > 1 and not torch.cuda.is_available(), timeout=_LONGEST_WAIT)
    if state.num_processes != several:
        raise UserError(
            f"The launcher has started {several} processes, but {state.num_processes} know of each other.",
            fix="Use `lora-dpo eval ... --processes N`, or a file of accelerate_configs/ that fits this machine.",
        )


def _work(asked: Asked) -> Work:
    return Work(from_first(lambda: _kept(asked)))


def _kept(asked: Asked) -> Path | None:
    named, origin = asked.named, origin_of(asked.recipe)
    if named.run is not None and os.access(named.run.path, os.W_OK):  # it may be somebody else's
        return kept_values(named.run.evaluation, named.place, origin)
    return kept_values(asked.output.evaluation, _files(asked), origin, _CONFIGURATION)


def _files(asked: Asked) -> str:
    """Returns where the trained weights' files are, also those of a GGUF file."""
    named = asked.named
    return resolve(ModelSection(name=named.place)) if named.kind == "model" else named.place


def _say_what_is_compared(asked: Asked, loaded: Loaded) -> None:
    subject = loaded.subject
    several = f" and {len(subject.questions)} questions" if subject.questions else ""
    of_what = "held-out pairs" if asked.data is None else f"pairs of {asked.data}"
    if subject.pairs or subject.questions:
        note(f"Comparing before and after on {len(subject.pairs):,} {of_what}{several}.")
    left_out = ", ".join(f"{n} {why}" for why, n in loaded.held_out.counts.get("dropped", {}).items() if n)
    if asked.data is not None and left_out:
        note(f"Left out of {asked.data}: {left_out}.")
    if UNKNOWN_TRAINING in loaded.held_out.caveats:
        note(UNKNOWN_TRAINING)


def _training(asked: Asked) -> dict[str, float] | None:
    """Returns steps and seconds of the training, where the whole of it is measured and they are known."""
    run = asked.named.run
    if asked.named.kind != "run" or run is None:
        return None
    return json.loads(run.report_json.read_text(encoding="utf-8"))["training"]


def _identity(asked: Asked) -> dict[str, Any]:
    return {
        **asked.identity(),
        "weights_sha256": weights_hash(_files(asked), None),
        "base": asked.recipe.model.name,
        "base_weights_sha256": base_hash(asked),
    }


def _write(asked: Asked, report: Report) -> None:
    output, outcomes = asked.output, report.measured.outcomes
    write_outcomes(output.outcomes, outcomes)
    pictures = draw_run(output) if asked.is_own_report else draw_results(outcomes, output.plots)
    write_report(report, output, pictures)
