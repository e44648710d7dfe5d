"""DPO on top of an adapter: what is trained, what the reference is, and what is saved."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model, load_peft_weights
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from lora_dpo.errors import UserError
from lora_dpo.preparation import Loaded, check_launch, load, make_trainer, prepare_setting
from lora_dpo.recipe.schema import Recipe
from lora_dpo.training.reference import fill_reference
from lora_dpo.training.reference_policy import reference_policy
from lora_dpo.training.saving import save_policy
from lora_dpo.training.trainer import PreferenceTrainer
from tests.small import preferences, small_recipe

TARGETS = {"llama": ["q_proj", "o_proj", "up_proj"], "gpt2": ["c_attn", "c_proj"]}
Adapter = Callable[..., Path]


@pytest.fixture
def adapter(tmp_path: Path) -> Adapter:
    """Returns a function that saves a random adapter for a model."""

    def make(model: Path, architecture: str, **options: Any) -> Path:
        base = AutoModelForCausalLM.from_pretrained(model)
        config = LoraConfig(
            task_type="CAUSAL_LM",
            target_modules=TARGETS[architecture],
            fan_in_fan_out=architecture == "gpt2",
            **{"r": 3, "lora_alpha": 12, **options},
        )
        torch.manual_seed(5)
        made = get_peft_model(base, config)
        for name, value in made.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(value, std=0.1)
        made.save_pretrained(tmp_path / "below")
        return tmp_path / "below"

    return make


def recipe_on(model: Path, below: Path, folder: Path, **sections: dict[str, Any]) -> Recipe:
    rows = [
        {"prompt": pair.prompt[-1]["content"], "chosen": pair.chosen, "rejected": pair.rejected}
        for pair in preferences(8)
    ]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    values: dict[str, dict[str, Any]] = {
        "data": {"path": str(folder / "pairs.jsonl"), "split": {"test": 0.0, "validation": 0.0}},
        "adapter": {"init_from": str(below), "r": 2, "alpha": 6, "rslora": True},
        "train": {"max_steps": 4, "warmup": 0.0, "learning_rate": 1e-2},
    }
    for section, keys in sections.items():
        values[section] = {**values.get(section, {}), **keys}
    return small_recipe(model, folder, **values)


@dataclass
class Made:
    """A trainer as the pipeline makes it, and what it was made of."""

    recipe: Recipe
    loaded: Loaded
    trainer: PreferenceTrainer
    tokenizer: Any

    def losses(self) -> list[float]:
        self.trainer.train()
        return [entry["loss"] for entry in self.trainer.state.log_history if "loss" in entry]

    def save(self, folder: Path) -> Path:
        save_policy(self.trainer, folder, self.tokenizer, self.loaded.below)
        return folder


def make(recipe: Recipe, folder: Path) -> Made:
    setting = prepare_setting(recipe)
    loaded = load(setting, *check_launch(setting, folder / "checkpoints"))
    trainer = make_trainer(setting, loaded, callbacks=[])
    fill_reference(trainer, recipe)
    return Made(recipe, loaded, trainer, setting.tokenizer)


def logits(model: torch.nn.Module, trainer: PreferenceTrainer) -> torch.Tensor:
    ids = torch.tensor([trainer.train_dataset[0]["prompt_ids"] + trainer.train_dataset[0]["chosen_ids"]])
    with torch.no_grad():
        return model.eval()(input_ids=ids).logits


def hand_merged(model: Path, *updates: dict[str, torch.Tensor]) -> PreTrainedModel:
    """Returns the base with updates added to its weights, each given by the weight's name."""
    base = AutoModelForCausalLM.from_pretrained(model)
    for update in updates:
        for name, added in update.items():
            turned = isinstance(base.get_submodule(name.removesuffix(".weight")), Conv1D)
            base.get_parameter(name).data += added.T if turned else added
    return base


def updates_in(folder: Path, scale: float) -> dict[str, torch.Tensor]:
    """Returns scale * B A of each layer, by the weight's name, from an adapter's file."""
    tensors = load_peft_weights(str(folder))
    places = [name.removesuffix(".lora_A.weight") for name in tensors if name.endswith(".lora_A.weight")]
    return {
        f"{place.removeprefix('base_model.model.')}.weight": scale
        * (tensors[f"{place}.lora_B.weight"] @ tensors[f"{place}.lora_A.weight"])
        for place in places
    }


def trained_updates(trainer: PreferenceTrainer, scale: float) -> dict[str, torch.Tensor]:
    """Returns the same of the adapter that a trainer has trained."""
    parts = {name: value.detach() for name, value in trainer.model.named_parameters() if ".default." in name}
    found = {}
    for name, a in parts.items():
        if ".lora_A." in name:
            place = name.partition(".lora_A.")[0].removeprefix("base_model.model.")
            found[f"{place}.weight"] = scale * (parts[name.replace("lora_A", "lora_B")] @ a)
    return found


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
@pytest.mark.parametrize("mode", ["continue", "merge"])
def test_the_saved_adapter_on_the_original_base_is_the_trained_model(
    mode: str, architecture: str, tiny_models, adapter: Adapter, tmp_path: Path
) -> None:
    """The first adapter is on three kinds of layers, the second on all: ranks differ from layer to layer."""
    model = tiny_models(architecture)
    below = adapter(model, architecture)
    made = make(recipe_on(model, below, tmp_path, adapter={"init_mode": mode}), tmp_path)
    seen = made.losses()
    assert seen[0] == pytest.approx(math.log(2), abs=1e-5)
    assert seen[-1] < seen[0] - 1e-3
    saved = made.save(tmp_path / "saved")

    config = json.loads((saved / "adapter_config.json").read_text())
    if mode == "continue":
        assert (config["r"], config["lora_alpha"]) == (3, 12)
        expected = hand_merged(model, trained_updates(made.trainer, 12 / 3))
    else:
        assert (config["r"], config["lora_alpha"], config["use_rslora"]) == (5, 5, False)
        first, second = updates_in(below, 12 / 3), trained_updates(made.trainer, 6 / math.sqrt(2))
        assert first.keys() < second.keys()
        expected = hand_merged(model, first, second)
    plain = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(model), saved)
    live = logits(made.trainer.model, made.trainer)
    torch.testing.assert_close(logits(plain, made.trainer), live, atol=1e-5, rtol=0)
    torch.testing.assert_close(logits(expected, made.trainer), live, atol=1e-5, rtol=0)
    base = AutoModelForCausalLM.from_pretrained(model)
    assert (logits(base, made.trainer) - live).abs().max() > 1e-3, "the adapters do nothing, so equality says little"


def chosen_log_probs(model: torch.nn.Module, trainer: PreferenceTrainer, side: str = "chosen") -> list[float]:
    found = []
    for row in trainer.train_dataset:
        ids = torch.tensor([row["prompt_ids"] + row[f"{side}_ids"]])
        with torch.no_grad():
            log_probs = model(ids).logits[0, :-1].log_softmax(-1).gather(-1, ids[0, 1:, None])
        found.append(log_probs[len(row["prompt_ids"]) - 1 :].sum().item())
    return found


def test_the_reference_is_the_model_that_was_asked_for(tiny_models, adapter: Adapter, tmp_path: Path) -> None:
    model = tiny_models("llama")
    below = adapter(model, "llama")
    base = AutoModelForCausalLM.from_pretrained(model).eval()
    start = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(model), below).eval()
    expected = {
        "init": ({}, start),
        "merged": ({"adapter": {"init_mode": "merge"}}, start),
        "base": ({"dpo": {"reference_model": "base"}}, base),
    }
    keys = set()
    for sections, reference in expected.values():
        made = make(recipe_on(model, below, tmp_path, **sections), tmp_path)
        wanted = chosen_log_probs(reference, made.trainer)
        assert made.trainer.train_dataset["ref_chosen_logps"] == pytest.approx(wanted, abs=1e-4)
        keys.add(reference_policy(made.trainer, made.recipe).key)
    assert len(keys) == 3
    fresh = make(recipe_on(model, below, tmp_path, adapter={"init_from": None}), tmp_path)
    assert reference_policy(fresh.trainer, fresh.recipe).key in keys  # the base of them all is known already
    apart = [abs(a - b) for a, b in zip(chosen_log_probs(base, made.trainer), wanted, strict=True)]
    assert (
        max(apart) < 1e-6 < max(abs(a - b) for a, b in zip(chosen_log_probs(start, made.trainer), wanted, strict=True))
    )


def test_against_the_base_the_first_loss_is_what_the_adapter_makes_it(
    tiny_models, adapter: Adapter, tmp_path: Path
) -> None:
    model = tiny_models("llama")
    below = adapter(model, "llama")
    sections = {"dpo": {"reference_model": "base"}, "train": {"global_batch_size": 8, "max_steps": 2}}
    made = make(recipe_on(model, below, tmp_path, **sections), tmp_path)
    base = AutoModelForCausalLM.from_pretrained(model).eval()
    start = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(model), below).eval()
    sides = [[chosen_log_probs(one, made.trainer, side) for side in ("chosen", "rejected")] for one in (start, base)]
    margins = (
        torch.tensor(sides[0][0]) - torch.tensor(sides[0][1]) - torch.tensor(sides[1][0]) + torch.tensor(sides[1][1])
    )
    expected = -torch.nn.functional.logsigmoid(0.1 * margins).mean().item()
    found = made.losses()
    assert found[0] == pytest.approx(expected, abs=1e-5)
    assert abs(found[0] - math.log(2)) > 1e-3
    trained = {name for name, value in made.trainer.model.named_parameters() if value.requires_grad}
    assert trained
    assert not [name for name, _ in made.trainer.model.named_parameters() if ".ref." in name]


def test_an_adapter_that_changes_nothing_is_no_start_against_the_base(
    tiny_models, adapter: Adapter, tmp_path: Path
) -> None:
    model = tiny_models("llama")
    below = adapter(model, "llama")
    zeroed = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(model), below)
    for name, value in zeroed.named_parameters():
        if "lora_B" in name:
            value.data.zero_()
    zeroed.save_pretrained(below)
    made = make(recipe_on(model, below, tmp_path, dpo={"reference_model": "base"}), tmp_path)
    with pytest.raises(UserError, match="policy and reference are the same; but dpo.reference_model is base"):
        made.trainer.train()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"use_dora": True}, "is DoRA, which also changes the weights' magnitudes"),
        ({"modules_to_save": ["lm_head"]}, r"holds whole layers \(modules_to_save\)"),
        ({"lora_bias": True}, "has biases"),
    ],
)
def test_what_is_no_sum_is_not_merged(options, words: str, tiny_models, adapter: Adapter, tmp_path: Path) -> None:
    model = tiny_models("llama")
    recipe = recipe_on(model, adapter(model, "llama", **options), tmp_path, adapter={"init_mode": "merge"})
    with pytest.raises(UserError, match=f"{words}, so it cannot be saved as one adapter with another"):
        make(recipe, tmp_path)
