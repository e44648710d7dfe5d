"""What a training shows and leaves behind: a progress bar or plain lines, and metrics.jsonl."""

from __future__ import annotations

import json
import math
import os
import time
from pathlib import Path
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from lora_dpo.console import SECONDS_BETWEEN_LINES, err

_NOT_METRICS = {"total_flos", "train_runtime", "train_samples_per_second", "train_steps_per_second", "train_loss"}

_OF_PAIRS = {"loss": "loss {:.3f}", "rewards/margins": "margin {:+.3f}", "rewards/accuracies": "accuracy {:.2f}"}
_OF_EXAMPLES = {"loss": "loss {:.3f}", "mean_token_accuracy": "token accuracy {:.2f}"}


class TrainingLog(TrainerCallback):
    """Writes every logged step to metrics.jsonl and shows how far the training is.

    On a terminal it is one live bar; elsewhere (a batch job's log) a line every ten seconds.

    Args:
        metrics: The file to append to.
        global_batch: Pairs an optimizer step, for the pairs a second.
        unit: What a step has so many of: pairs, or examples.
    """

    def __init__(self, metrics: Path, global_batch: int, unit: str = "pairs") -> None:
        self._file = metrics
        self._global_batch = global_batch
        self._unit = unit
        self._clock = _Clock()
        self._progress: Progress | None = None
        self._line_due = 0.0

    def sync(self) -> int:
        """Waits until what was written is on the disk, and returns the file's length in bytes."""
        if not self._file.exists():
            return 0
        with self._file.open("ab") as file:
            os.fsync(file.fileno())
            return file.tell()

    def go_on_from(self, tokens: int) -> None:
        """Takes note of the tokens that earlier processes have trained on, so that rates leave them out."""
        self._clock.go_on_from(tokens)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Opens the bar."""
        self._clock.start(state.global_step)
        if state.is_world_process_zero and err.is_terminal:
            self._progress = Progress(
                TextColumn("training"),
                BarColumn(bar_width=None),
                MofNCompleteColumn(),
                TextColumn("{task.fields[numbers]}"),
                TimeElapsedColumn(),
                TextColumn("left"),
                TimeRemainingColumn(),
                console=err,
                expand=True,
            )
            self._task = self._progress.add_task("", total=state.max_steps, completed=state.global_step, numbers="")
            self._progress.start()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Moves the bar, and remembers when the step ended: an evaluation starts from there."""
        self._clock.step_ended()
        if self._progress:
            self._progress.update(self._task, completed=state.global_step)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Writes one line to the file and refreshes what is shown."""
        if not state.is_world_process_zero or not logs or "train_runtime" in logs:
            return
        entry = self._entry(logs, state)
        with self._file.open("a", encoding="utf-8") as file:
            file.write(json.dumps({key: _finite(value) for key, value in entry.items()}) + "\n")
        self._show(entry, state)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Closes the bar."""
        self.close()

    def close(self) -> None:
        """Gives the terminal back; safe to call twice."""
        if self._progress:
            self._progress.stop()
            self._progress = None

    def _entry(self, logs: dict[str, Any], state: TrainerState) -> dict[str, Any]:
        phase = "eval" if any(key.startswith("eval_") for key in logs) else "train"
        entry: dict[str, Any] = {"step": state.global_step, "epoch": round(state.epoch or 0.0, 4), "phase": phase}
        entry |= {
            key.removeprefix("eval_"): value
            for key, value in logs.items()
            if key not in _NOT_METRICS and key != "epoch"
        }
        if phase == "train":
            tokens, steps = self._clock.rates(state.global_step, logs.get("num_tokens", 0.0))
            entry |= {
                "max_steps": state.max_steps,  # `lora-dpo status` tells from it how far the run is
                "tokens_per_second": round(tokens, 1),
                f"{self._unit}_per_second": round(steps * self._global_batch, 3),
            }
        else:
            self._clock.pause_ended()
        return entry

    def _show(self, entry: dict[str, Any], state: TrainerState) -> None:
        if self._progress:
            if entry["phase"] == "train":
                self._progress.update(self._task, numbers=_numbers(entry))
        elif entry["phase"] == "eval":
            err.print(f"step {state.global_step}/{state.max_steps}  validation: {_numbers(entry)}", soft_wrap=True)
        elif time.monotonic() >= self._line_due or state.global_step == state.max_steps:
            self._line_due = time.monotonic() + SECONDS_BETWEEN_LINES
            left = self._clock.seconds_left(state.global_step, state.max_steps)
            line = f"step {state.global_step}/{state.max_steps}  {_numbers(entry)}  {_clock_text(left)} left"
            err.print(line, soft_wrap=True)


def _finite(value: Any) -> Any:
    """Returns the value, or None for NaN and infinities, which JSON does not have."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _numbers(entry: dict[str, Any]) -> str:
    shown = _OF_PAIRS if "rewards/margins" in entry else _OF_EXAMPLES
    numbers = "  ".join(form.format(entry[name]) for name, form in shown.items())
    rate = entry.get("tokens_per_second")
    return numbers if rate is None else f"{numbers}  {rate:,.0f} tok/s"


def _clock_text(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}"


class _Clock:
    """Measures rates over the time spent in training steps, evaluations left out."""

    def start(self, step: int) -> None:
        self._first_step = self._step = step
        self._tokens = 0.0
        self._since = self._begin = self._step_end = time.monotonic()

    def go_on_from(self, tokens: int) -> None:
        self._tokens = tokens

    def rates(self, step: int, tokens: float) -> tuple[float, float]:
        """Returns tokens and steps a second since the last call."""
        now = time.monotonic()
        seconds, steps, new_tokens = max(now - self._since, 1e-9), step - self._step, tokens - self._tokens
        self._since, self._step, self._tokens = now, step, tokens
        return new_tokens / seconds, steps / seconds

    def step_ended(self) -> None:
        self._step_end = time.monotonic()

    def pause_ended(self) -> None:
        now = time.monotonic()
        self._since += now - max(self._step_end, self._since)  # steps not yet logged keep their time

    def seconds_left(self, step: int, max_steps: int) -> float:
        done = step - self._first_step
        return (time.monotonic() - self._begin) / done * (max_steps - step) if done else 0.0
