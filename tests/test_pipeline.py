from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from lora_dpo.errors import UserError
from lora_dpo.pipeline import align
from tests.small import small_recipe
from tests.tiny import tiny_tokenizer


def data_file(folder: Path, words: int = 1) -> str:
    rows = [{"prompt": f"What is {n}?", "chosen": "one " * words, "rejected": "Two."} for n in range(10)]
    file = folder / "data.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(file)


def test_pair_longer_than_the_model_s_positions_stops_before_anything_is_written(tiny_models, tmp_path: Path) -> None:
    recipe = small_recipe(
        tiny_models("gpt2"), tmp_path / "runs", data={"path": data_file(tmp_path, 600)}, dpo={"max_length": 4096}
    )
    with pytest.raises(UserError, match=r"has only 512 positions\.\nSet dpo\.max_length to 512 or less \(now 4096\)"):
        align(recipe)
    assert not (tmp_path / "runs").exists()


def test_finished_run_is_not_overwritten_unless_asked(tiny_models, tmp_path: Path, capfd) -> None:
    train = {"max_steps": 1}
    recipe = small_recipe(tiny_models("gpt2"), tmp_path, data={"path": data_file(tmp_path)}, train=train)
    folder = align(recipe)
    before = (folder / "report.json").read_bytes()
    before_metrics = (folder / "metrics.jsonl").read_text().splitlines()
    assert align(recipe) == folder
    said = " ".join(capfd.readouterr().err.split())
    assert "is finished; this is its report. To run it again, add --overwrite." in said
    with pytest.raises(UserError, match="--overwrite"):
        align(recipe.model_copy(update={"dpo": recipe.dpo.model_copy(update={"beta": 0.3})}))
    assert (folder / "report.json").read_bytes() == before
    (folder / "plots" / "stale.png").write_text("x")
    assert align(recipe, overwrite=True) == folder
    assert not (folder / "plots" / "stale.png").exists()
    assert len((folder / "metrics.jsonl").read_text().splitlines()) == len(before_metrics)


def test_whole_model_is_saved_where_it_was_trained(tiny_models, tmp_path: Path) -> None:
    recipe = small_recipe(tiny_models("gpt2"), tmp_path, data={"path": data_file(tmp_path)}, adapter={"method": "full"})
    folder = align(recipe)
    assert (folder / "model" / "model.safetensors").is_file()
    assert not (folder / "adapter").exists()
    preference = json.loads((folder / "report.json").read_text())["preference"]
    assert preference["margin"]["before"] != preference["margin"]["after"]


def test_a_run_that_fails_before_its_first_step_does_not_cost_the_one_it_replaces(tiny_models, tmp_path: Path) -> None:
    settings = {"data": {"path": data_file(tmp_path)}, "train": {"max_steps": 1}}
    folder = align(small_recipe(tiny_models("gpt2"), tmp_path, **settings))
    before = {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}
    broken = AutoModelForCausalLM.from_pretrained(tiny_models("gpt2"))
    with torch.no_grad():
        broken.transformer.ln_f.weight.fill_(float("nan"))
    broken.save_pretrained(tmp_path / "broken")
    tiny_tokenizer("gpt2").save_pretrained(tmp_path / "broken")
    with pytest.raises(UserError, match="The first loss is nan"):
        align(small_recipe(tmp_path / "broken", tmp_path, **settings), overwrite=True)
    assert {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()} == before


def test_a_continued_run_is_compared_with_the_adapter_that_it_started_from(tiny_models, tmp_path: Path) -> None:
    settings = {"data": {"path": data_file(tmp_path)}, "train": {"max_steps": 3, "learning_rate": 1e-2}}
    first = align(small_recipe(tiny_models("gpt2"), tmp_path, **settings))
    second = align(
        small_recipe(
            tiny_models("gpt2"), tmp_path, **settings, adapter={"init_from": str(first)}, run={"name": "second"}
        )
    )
    reports = [json.loads((run / "report.json").read_text()) for run in (first, second)]
    ended, started = (report["preference"]["margin"] for report in reports)
    assert started["before"] == pytest.approx(ended["after"], abs=1e-4)
    assert abs(ended["after"] - ended["before"]) > 1e-2


def test_the_token_is_written_nowhere(tiny_models, tmp_path: Path, monkeypatch, capfd) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_a_secret_that_must_not_leak")
    settings = {"data": {"path": data_file(tmp_path)}, "train": {"max_steps": 1, "keep_checkpoints": 1}}
    folder = align(small_recipe(tiny_models("gpt2"), tmp_path, **settings))
    files = [file for file in folder.rglob("*") if file.is_file()]
    assert any(file.name == "training_args.bin" for file in files)
    assert [file for file in files if b"secret_that_must" in file.read_bytes()] == []
    assert "secret_that_must" not in "".join(capfd.readouterr())
