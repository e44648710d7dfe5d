from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lora_dpo.model.base import load_model
from lora_dpo.recipe.schema import ModelSection
from lora_dpo.training.dropout import set_adapter_dropout
from tests.small import small_recipe, small_trainer


def trainer_with(tiny_models, folder: Path, architecture: str, dropout: float, **adapter):
    """Returns a trainer in training mode whose adapter is not zero, with one batch."""
    recipe = small_recipe(tiny_models(architecture), folder, adapter={"dropout": dropout, **adapter})
    trainer = small_trainer(recipe)
    torch.manual_seed(5)
    for name, parameter in trainer.model.named_parameters():
        if "lora_B" in name and ".ref." not in name:
            torch.nn.init.normal_(parameter, std=0.3)
    trainer.model.train()
    return trainer, trainer.data_collator([trainer.train_dataset[n] for n in range(4)])


def policy(trainer, batch) -> torch.Tensor:
    inputs = {key: batch[key] for key in ("input_ids", "attention_mask")}
    with torch.no_grad():
        return trainer.model(**inputs).logits


def reference(trainer, batch) -> torch.Tensor:
    return torch.cat(trainer.compute_ref_log_probs(trainer.model, batch))


@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_dropout_is_on_the_policy_and_off_the_reference(architecture: str, tiny_models, tmp_path: Path) -> None:
    trainer, batch = trainer_with(tiny_models, tmp_path, architecture, 0.3)
    assert (policy(trainer, batch) - policy(trainer, batch)).abs().max() > 1e-3
    torch.testing.assert_close(reference(trainer, batch), reference(trainer, batch), atol=0, rtol=0)
    trainer.model.eval()
    torch.testing.assert_close(policy(trainer, batch), policy(trainer, batch), atol=0, rtol=0)


@pytest.mark.parametrize("architecture", ["gpt2", "gptj", "llama"])
def test_the_base_model_s_own_dropout_is_off(architecture: str, tiny_models, tmp_path: Path) -> None:
    trainer, batch = trainer_with(tiny_models, tmp_path, architecture, 0.0)
    if architecture == "gpt2":
        assert trainer.model.config.attn_pdrop == 0.1  # on by default, as in the published model
    torch.testing.assert_close(policy(trainer, batch), policy(trainer, batch), atol=0, rtol=0)


def test_full_training_has_no_dropout_either(tiny_models, tmp_path: Path) -> None:
    trainer = small_trainer(small_recipe(tiny_models("gpt2"), tmp_path, adapter={"method": "full"}))
    for model in (trainer.model, trainer.accelerator.unwrap_model(trainer.ref_model)):
        assert {module.p for module in model.modules() if isinstance(module, torch.nn.Dropout)} == {0.0}


def test_attention_dropout_given_as_a_number_is_off(tiny_models) -> None:
    model = load_model(ModelSection(name=str(tiny_models("llama"))))
    for layer in model.model.layers:
        layer.self_attn.attention_dropout = 0.4
    model.train()
    ids = torch.arange(20, 40)[None]
    assert not torch.equal(model(input_ids=ids).logits, model(input_ids=ids).logits)
    set_adapter_dropout(model, 0.5)
    assert torch.equal(model(input_ids=ids).logits, model(input_ids=ids).logits)


def test_reference_adapter_is_silent_and_the_trained_one_is_not(tiny_models, tmp_path: Path) -> None:
    first, _ = trainer_with(tiny_models, tmp_path, "llama", 0.4)
    first.model.save_pretrained(tmp_path / "adapter")
    trainer, batch = trainer_with(tiny_models, tmp_path, "llama", 0.2, init_from=str(tmp_path / "adapter"))
    found = {"default": set(), "ref": set()}
    for module in trainer.model.modules():
        for name, dropout in getattr(module, "lora_dropout", {}).items():
            found[name].add(getattr(dropout, "p", 0.0))
    assert found == {"default": {0.2}, "ref": {0.0}}
    assert (policy(trainer, batch) - policy(trainer, batch)).abs().max() > 1e-3
    torch.testing.assert_close(reference(trainer, batch), reference(trainer, batch), atol=0, rtol=0)


def test_a_new_probability_replaces_the_old_one(tiny_models, tmp_path: Path) -> None:
    trainer, _ = trainer_with(tiny_models, tmp_path, "llama", 0.4)
    set_adapter_dropout(trainer.model, 0.1)
    probabilities = {
        getattr(dropout, "p", 0.0)
        for module in trainer.model.modules()
        for dropout in getattr(module, "lora_dropout", {}).values()
    }
    assert probabilities == {0.1}
