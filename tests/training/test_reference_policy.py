from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from lora_dpo.recipe.schema import Recipe
from lora_dpo.training import reference_policy as module
from lora_dpo.training.reference_policy import ReferencePolicy, reference_policy
from lora_dpo.training.trainer import PreferenceTrainer
from tests.small import small_recipe, small_trainer


def policy_of(recipe: Recipe) -> ReferencePolicy:
    found = reference_policy(small_trainer(recipe, reference=False), recipe)
    assert found is not None
    return found


@pytest.fixture
def folder(tiny_models, tmp_path: Path) -> Path:
    """Returns a copy of a tiny model, to be changed."""
    return Path(shutil.copytree(tiny_models("llama"), tmp_path / "model"))


def test_says_what_the_reference_is(folder: Path, tmp_path: Path) -> None:
    parts = policy_of(small_recipe(folder, tmp_path)).parts
    assert {name: parts[name] for name in parts if name != "weights"} == {
        "scoring_version": 1,
        "adapter": None,
        "quantisation": None,
        "weights_dtype": "float32",
        "autocast": "no",
        "attention": "lora_dpo_tree_sdpa",
        "trees": True,
    }
    assert len(parts["weights"]) == 64


SAME = {
    "beta": {"dpo": {"beta": 0.5, "loss": "ipo", "ld_alpha": 0.5}},
    "schedule": {"train": {"learning_rate": 1.0, "epochs": 3, "max_steps": None, "global_batch_size": 2}},
    "a fresh adapter of another shape": {"adapter": {"r": 2, "alpha": 3, "targets": ["q_proj"]}},
    "data": {"data": {"limit": 2}, "run": {"seed": 5, "name": "other"}},
}
OTHER = {
    "attention": {"model": {"attention": "eager"}},
    "dtype": {"model": {"dtype": "bfloat16"}},
    "trees": {"train": {"trees": "off"}},
}


def changed(folder: Path, tmp_path: Path, sections: dict[str, Any]) -> ReferencePolicy:
    others = {name: keys for name, keys in sections.items() if name != "model"}
    recipe = small_recipe(folder, tmp_path, **others)
    model = recipe.model.model_copy(update=sections.get("model", {}))
    return policy_of(recipe.model_copy(update={"model": model}))


@pytest.mark.parametrize("change", SAME)
def test_does_not_depend_on_the_training(folder: Path, tmp_path: Path, change: str) -> None:
    assert changed(folder, tmp_path, SAME[change]).key == changed(folder, tmp_path, {}).key


@pytest.mark.parametrize("change", OTHER)
def test_depends_on_how_it_is_computed(folder: Path, tmp_path: Path, change: str) -> None:
    assert changed(folder, tmp_path, OTHER[change]).key != changed(folder, tmp_path, {}).key


def test_depends_on_four_bit_weights(folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    parts = changed(folder, tmp_path, {"adapter": {"method": "qlora"}}).parts
    assert parts["quantisation"]["bnb_4bit_quant_type"] == "nf4"


def test_depends_on_the_scoring_version(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = changed(folder, tmp_path, {})
    monkeypatch.setattr(module, "SCORING_VERSION", 2)
    assert changed(folder, tmp_path, {}).key != before.key


def test_depends_on_the_weights_and_the_configuration_not_on_the_place(folder: Path, tmp_path: Path) -> None:
    before = changed(folder, tmp_path, {}).key
    moved = folder.rename(tmp_path / "moved")
    assert changed(moved, tmp_path, {}).key == before
    config = json.loads((moved / "config.json").read_text())
    (moved / "config.json").write_text(json.dumps({**config, "rms_norm_eps": 1e-3}))
    other_config = changed(moved, tmp_path, {}).key
    weights = load_file(moved / "model.safetensors")
    weights["model.norm.weight"][0] += 1e-3
    save_file(weights, moved / "model.safetensors", {"format": "pt"})
    assert len({before, other_config, changed(moved, tmp_path, {}).key}) == 3


def test_depends_on_the_adapter_that_is_continued(folder: Path, tmp_path: Path) -> None:
    before = changed(folder, tmp_path, {}).key
    keys = []
    for scale in (0.1, 0.2):
        fresh = small_trainer(small_recipe(folder, tmp_path), reference=False).model
        for name, value in fresh.named_parameters():
            if "lora_B" in name:
                torch.nn.init.constant_(value, scale)
        fresh.save_pretrained(tmp_path / "run" / "adapter")
        keys += [changed(folder, tmp_path, {"adapter": {"init_from": str(tmp_path / "run")}}).key for _ in range(2)]
        shutil.rmtree(tmp_path / "run")
    assert keys[0] == keys[1] != keys[2] == keys[3]
    assert before not in keys


def in_memory(folder: Path, tmp_path: Path, change: float = 0.0) -> PreferenceTrainer:
    """Returns a trainer whose model has no files that are known."""
    trainer = small_trainer(small_recipe(folder, tmp_path), reference=False)
    base = trainer.model.get_base_model()
    base.config._name_or_path = ""
    with torch.no_grad():
        base.model.norm.weight[0] += change
    return trainer


def test_a_model_without_files_is_known_by_its_tensors(folder: Path, tmp_path: Path) -> None:
    recipe = small_recipe(folder, tmp_path)
    found = [reference_policy(in_memory(folder, tmp_path, change), recipe) for change in (0.0, 0.0, 1e-6)]
    keys = [policy.key for policy in found if policy is not None]
    assert keys[0] == keys[1] != keys[2]


def test_weights_that_are_elsewhere_cannot_be_known(folder: Path, tmp_path: Path) -> None:
    trainer = in_memory(folder, tmp_path)
    config = AutoModelForCausalLM.from_pretrained(folder).config
    with torch.device("meta"):
        trainer.model = AutoModelForCausalLM.from_config(config)
    trainer.model.config._name_or_path = ""
    assert reference_policy(trainer, small_recipe(folder, tmp_path)) is None
