from __future__ import annotations

import json
from pathlib import Path

import pytest
from transformers import TrainerControl, TrainerState, TrainingArguments

from lora_dpo.training import progress
from lora_dpo.training.progress import TrainingLog
from tests.small import small_recipe, small_trainer

TRAIN_KEYS = {
    "step", "epoch", "phase", "loss", "grad_norm", "learning_rate", "num_tokens", "rewards/chosen", "rewards/rejected",
    "rewards/accuracies", "rewards/margins", "logps/chosen", "logps/rejected", "tokens_per_second", "pairs_per_second",
    "max_steps",
}  # fmt: skip


def entries(file: Path) -> list[dict]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def test_one_object_a_logged_step(tiny_models, tmp_path: Path) -> None:
    recipe = small_recipe(tiny_models("gpt2"), tmp_path, train={"max_steps": 4, "eval_steps": 2})
    log = TrainingLog(tmp_path / "metrics.jsonl", 4)
    small_trainer(recipe, callbacks=(log,), validation=2).train()
    seen = entries(tmp_path / "metrics.jsonl")
    assert [(entry["step"], entry["phase"]) for entry in seen] == [
        (1, "train"), (2, "train"), (2, "eval"), (3, "train"), (4, "train"), (4, "eval"),
    ]  # fmt: skip
    for entry in seen:
        assert list(entry)[:3] == ["step", "epoch", "phase"]
        assert not [key for key in entry if key.startswith(("eval_", "train_"))]
        if entry["phase"] == "train":
            assert entry.keys() >= TRAIN_KEYS
            assert entry["tokens_per_second"] > 0
        else:
            assert entry.keys() >= {"loss", "rewards/accuracies", "rewards/margins", "logps/chosen"}
            assert "tokens_per_second" not in entry
    assert seen[0]["loss"] == pytest.approx(0.693147, abs=1e-5)
    assert [entry["epoch"] for entry in seen] == sorted(entry["epoch"] for entry in seen)


def test_a_second_log_appends(tiny_models, tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    file.write_text('{"step": 0}\n')
    recipe = small_recipe(tiny_models("gpt2"), tmp_path, train={"max_steps": 2, "logging_steps": 2})
    small_trainer(recipe, callbacks=(TrainingLog(file, 4),)).train()
    assert [entry["step"] for entry in entries(file)] == [0, 2]


class FakeTime:
    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> FakeTime:
    fake = FakeTime()
    monkeypatch.setattr(progress, "time", fake)
    return fake


LOGS = {"loss": 0.5, "rewards/margins": 0.1, "rewards/accuracies": 1.0}


def test_rates_leave_evaluations_out(clock: FakeTime, tmp_path: Path) -> None:
    """Steps of 2 s and 50 tokens, logged every second step; an evaluation of 30 s stands between two that are not."""
    log = TrainingLog(tmp_path / "metrics.jsonl", 8)
    args, state, control = TrainingArguments(str(tmp_path), report_to="none"), TrainerState(), TrainerControl()
    state.max_steps = 4
    log.on_train_begin(args, state, control)
    for step in range(1, 5):
        clock.now += 2.0
        state.global_step = step
        log.on_step_end(args, state, control)
        if step % 2 == 0:
            log.on_log(args, state, control, logs={**LOGS, "num_tokens": 50.0 * step})
        if step in (2, 3):
            clock.now += 30.0
            log.on_log(args, state, control, logs={f"eval_{key}": value for key, value in LOGS.items()})
    train = [entry for entry in entries(tmp_path / "metrics.jsonl") if entry["phase"] == "train"]
    assert [entry["tokens_per_second"] for entry in train] == [25.0, 25.0]  # 100 tokens in 4 s
    assert [entry["pairs_per_second"] for entry in train] == [4.0, 4.0]  # 2 steps of 8 pairs in 4 s


def test_only_rank_0_writes(tmp_path: Path) -> None:
    log = TrainingLog(tmp_path / "metrics.jsonl", 8)
    state = TrainerState(is_world_process_zero=False)
    args, control = TrainingArguments(str(tmp_path), report_to="none"), TrainerControl()
    log.on_train_begin(args, state, control)
    log.on_log(args, state, control, logs=dict(LOGS))
    assert not (tmp_path / "metrics.jsonl").exists()


def test_the_trainer_s_summary_is_no_step(tmp_path: Path) -> None:
    log = TrainingLog(tmp_path / "metrics.jsonl", 8)
    args, state, control = TrainingArguments(str(tmp_path), report_to="none"), TrainerState(), TrainerControl()
    log.on_train_begin(args, state, control)
    log.on_log(args, state, control, logs={"train_runtime": 3.0, "train_loss": 0.4})
    log.close()
    log.close()
    assert not (tmp_path / "metrics.jsonl").exists()
