"""SFT over forests against TRL's SFTTrainer as it is: one padded row an example."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from datasets import Dataset
from torch.utils.data import SequentialSampler
from trl import SFTTrainer

from lora_dpo.model.adapter import lora_config
from lora_dpo.model.base import load_model, load_tokenizer
from lora_dpo.recipe.batch import plan_batches
from lora_dpo.recipe.schema import Recipe
from lora_dpo.recipe.stages import stage_recipe
from lora_dpo.training.arguments import training_arguments
from lora_dpo.training.dropout import set_adapter_dropout
from lora_dpo.training.supervised import SupervisedTrainer
from tests.small import small_recipe, small_supervised

ARCHITECTURES = ("gpt2", "llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3", "gptj")
COUNT = 7


def recipe_for(model: Path, folder: Path, **train) -> Recipe:
    train = {"learning_rate": 1e-2, "warmup": 0.0, "global_batch_size": 4, **train}
    sft = {"path": "unused.jsonl", "learning_rate": 1e-2, "max_steps": 6}
    return stage_recipe(small_recipe(model, folder, train=train, sft=sft), "sft")


def unmodified(recipe: Recipe, like: SupervisedTrainer, folder: Path, order: list[int]) -> SFTTrainer:
    """Returns TRL's trainer, of micro-batches of two rows, on examples in this order."""
    model = load_model(recipe.model)
    rows = like.train_dataset.remove_columns("group")
    trainer = SFTTrainer(
        model=model,
        args=training_arguments(
            recipe, plan_batches(recipe.train.global_batch_size, 2, 1), len(order), 0, folder / "trl"
        ),
        train_dataset=Dataset.from_list([rows[index] for index in order]),
        processing_class=load_tokenizer(recipe.model),
        peft_config=lora_config(recipe.adapter, model),
    )
    set_adapter_dropout(trainer.model, 0.0)  # GPT-2 has some, which TRL leaves on
    trainer._get_train_sampler = lambda dataset: SequentialSampler(dataset)
    return trainer


def logged(trainer: SFTTrainer, key: str) -> list[float]:
    return [entry[key] for entry in trainer.state.log_history if key in entry and "train_runtime" not in entry]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_forest_has_the_loss_and_gradients_of_padded_rows(architecture: str, tiny_models, tmp_path: Path) -> None:
    recipe = recipe_for(tiny_models(architecture), tmp_path)
    trainer = small_supervised(recipe, count=COUNT)
    plain = unmodified(recipe, trainer, tmp_path, list(range(COUNT)))
    torch.manual_seed(0)
    ours, theirs = (
        {name: value for name, value in one.model.named_parameters() if value.requires_grad} for one in (trainer, plain)
    )
    for name, value in ours.items():
        with torch.no_grad():
            theirs[name].copy_(value.normal_(std=0.1))
    rows = [trainer.train_dataset[index] for index in range(COUNT)]
    forest = trainer.data_collator(rows)
    assert "tree" in forest
    assert forest["tree"].tree.ids.shape[1] < forest["input_ids"].numel()
    items = (forest["labels"] != -100).sum()
    trainer.model.train()
    plain.model.train()
    loss = trainer.compute_loss(trainer.model, forest, num_items_in_batch=items)
    expected = plain.compute_loss(plain.model, plain.data_collator(rows), num_items_in_batch=items)
    assert loss.item() == pytest.approx(expected.item(), abs=1e-5)
    found = torch.autograd.grad(loss, list(ours.values()))
    wanted = torch.autograd.grad(expected, list(theirs.values()))
    for one, other in zip(found, wanted, strict=True):
        assert (one - other).abs().max() <= 1e-4 * other.abs().max()


@pytest.mark.parametrize("cut", [{"tokens_per_micro_batch": 170}, {"micro_batch_size": 1}, {"trees": "off"}])
def test_losses_are_those_of_an_unmodified_trainer_whatever_the_cut(cut, tiny_models, tmp_path: Path) -> None:
    """Sixteen examples are two steps an epoch; the micro-batches cut by tokens have unequal numbers of them."""
    recipe = recipe_for(tiny_models("llama"), tmp_path, global_batch_size=8, **cut)
    trainer = small_supervised(recipe, count=16)
    sizes = {len(part) for part in trainer.train_plan().micro_batches(0)}
    assert (len(sizes) > 1) == ("tokens_per_micro_batch" in cut)
    order = [index for epoch in range(3) for step in trainer.train_plan().steps(epoch) for index in step]
    plain = unmodified(recipe, trainer, tmp_path, order)
    trainer.train()
    plain.train()
    assert len(logged(trainer, "loss")) == 6
    assert logged(trainer, "loss") == pytest.approx(logged(plain, "loss"), abs=1e-5)
    assert logged(trainer, "grad_norm") == pytest.approx(logged(plain, "grad_norm"), rel=1e-3)
    assert logged(trainer, "num_tokens") == logged(plain, "num_tokens")
    assert logged(trainer, "loss")[-1] < logged(trainer, "loss")[0] - 1e-2, "nothing moved, so equality says little"


def test_metrics_are_means_over_tokens(tiny_models, tmp_path: Path) -> None:
    """TRL means over micro-batches; a step of one micro-batch has both."""
    recipe = recipe_for(tiny_models("llama"), tmp_path, tokens_per_micro_batch=80)
    trainer = small_supervised(recipe, count=4)
    assert len(trainer.train_plan().micro_batches(0)) > 1
    whole = small_supervised(recipe_for(tiny_models("llama"), tmp_path, micro_batch_size=4), count=4)
    for one in (trainer, whole):
        one.train()
    for name in ("entropy", "mean_token_accuracy", "loss"):
        assert logged(trainer, name) == pytest.approx(logged(whole, name), abs=1e-5)


def test_no_example_sees_another(tiny_models, tmp_path: Path) -> None:
    """What stands beside an example in its forest, even under the same prompt, leaves its loss as it is."""
    trainer = small_supervised(recipe_for(tiny_models("llama"), tmp_path), count=4)
    trainer.model.eval()
    rows = [trainer.train_dataset[index] for index in range(4)]
    sibling = {**rows[0], "input_ids": [*rows[0]["input_ids"][:-3], 7, 8, 9]}
    prompt = sum(label == -100 for label in rows[0]["labels"])

    def log_probs(*beside: dict) -> torch.Tensor:
        batch = trainer.data_collator([rows[0], *beside])
        with torch.no_grad():
            return trainer.model(tree=batch["tree"], fused_lm_head=True).log_probs[0, prompt - 1 : 40]

    alone = log_probs()
    width = len(rows[0]["input_ids"]) - prompt
    for beside in ([rows[1]], [rows[2], rows[3]], [sibling]):
        torch.testing.assert_close(log_probs(*beside)[:width], alone[:width], atol=1e-6, rtol=0)
