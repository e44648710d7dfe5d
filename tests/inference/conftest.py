"""A working directory with a run, an adapter and a merged model of a tiny model."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM

from lora_dpo.model.base import load_tokenizer
from lora_dpo.model.hashes import weights_hash
from lora_dpo.model.record import write_record
from lora_dpo.recipe.schema import ModelSection
from tests.adapters import finished_run, known, merged_by_peft


@pytest.fixture(scope="session")
def _made(tiny_models, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("talk")
    base = shutil.copytree(tiny_models("llama"), folder / "base")
    run = finished_run(base, folder / "runs")
    shutil.copytree(run.adapter, run.checkpoints / "step-1")
    shutil.copytree(run.adapter, folder / "adapter")
    model = AutoModelForCausalLM.from_pretrained(base)
    model.load_state_dict(merged_by_peft(base, run.adapter))
    model.save_pretrained(folder / "merged")
    load_tokenizer(ModelSection(name=str(base))).save_pretrained(folder / "merged")
    merged = {"stage": "merge", "model": known(base), "weights_sha256": weights_hash(str(folder / "merged"), None)}
    write_record(folder / "merged", merged)
    return folder


@pytest.fixture
def work(_made: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory: `base`, `runs/small`, `adapter` and `merged`, which are not to be changed."""
    monkeypatch.chdir(_made)
    return _made
