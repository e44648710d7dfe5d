from __future__ import annotations

from pathlib import Path

import pytest
import torch
from datasets import Dataset
from peft import PeftModel
from torch.utils.data import SequentialSampler
from transformers import AutoModelForCausalLM
from trl import DPOTrainer

from lora_dpo.errors import UserError
from lora_dpo.model.adapter import lora_config
from lora_dpo.model.base import load_model, load_tokenizer
from lora_dpo.recipe.batch import plan_batches
from lora_dpo.training.arguments import training_arguments
from lora_dpo.training.trainer import as_dataset
from lora_dpo.tree.hf import takes_trees
from tests.small import preferences, small_recipe, small_trainer, tokenised


def losses(trainer: DPOTrainer) -> list[float]:
    trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def test_training_lowers_the_loss(tiny_models, tmp_path: Path) -> None:
    train = {"max_steps": 30, "learning_rate": 3e-2, "warmup": 0.0, "scheduler": "constant"}
    trainer = small_trainer(small_recipe(tiny_models("gpt2"), tmp_path, train=train))
    seen = losses(trainer)
    assert seen[0] == pytest.approx(0.693147, abs=1e-5)
    assert seen[-1] < 0.5
    last = [entry for entry in trainer.state.log_history if "loss" in entry][-1]
    assert last["rewards/margins"] > 0.5
    assert last["rewards/accuracies"] == 1.0


def test_only_the_adapter_is_trained(tiny_models, tmp_path: Path) -> None:
    model = tiny_models("llama")
    trainer = small_trainer(small_recipe(model, tmp_path, train={"max_steps": 3, "warmup": 0.0}))
    trainable = {name for name, parameter in trainer.model.named_parameters() if parameter.requires_grad}
    assert trainable
    assert all("lora_" in name for name in trainable)
    trainer.train()
    original = AutoModelForCausalLM.from_pretrained(model).state_dict()
    base = {
        name.replace(".base_layer", ""): value
        for name, value in trainer.model.get_base_model().state_dict().items()
        if "lora_" not in name
    }
    assert base.keys() == original.keys()
    assert all(torch.equal(base[name], original[name]) for name in original)
    moved = [value for name, value in trainer.model.named_parameters() if "lora_B" in name]
    assert all(value.abs().max() > 0 for value in moved)


# The tokenised prompts of these agree with TRL's own: one template writes the BOS, the other has none. TRL keeps the
# newline after the end of turn of Gemma and Qwen, and forgets TinyLlama's BOS.
@pytest.mark.parametrize("loss", ["sigmoid", "ipo"])
def test_losses_are_those_of_an_unmodified_dpo_trainer(loss: str, tiny_models, tmp_path: Path) -> None:
    recipe = small_recipe(
        tiny_models("llama"),
        tmp_path,
        dpo={"loss": loss},
        train={"max_steps": 8, "learning_rate": 1e-2, "warmup": 0.0, "micro_batch_size": 2},
    )
    trainer = small_trainer(recipe, count=8)
    order = [place.index for epoch in range(4) for part in trainer.train_plan().micro_batches(epoch) for place in part]
    ours = losses(trainer)

    conversations = [
        {
            "prompt": list(pair.prompt),
            "chosen": [{"role": "assistant", "content": pair.chosen}],
            "rejected": [{"role": "assistant", "content": pair.rejected}],
        }
        for pair in preferences(8)
    ]
    plan = plan_batches(recipe.train.global_batch_size, recipe.train.micro_batch_size, 1)
    model = load_model(recipe.model)
    unmodified = DPOTrainer(
        model=model,
        args=training_arguments(recipe, plan, 8, 0, tmp_path / "trl"),
        train_dataset=Dataset.from_list([conversations[index] for index in order]),
        processing_class=load_tokenizer(recipe.model),
        peft_config=lora_config(recipe.adapter, model),
    )
    unmodified._get_train_sampler = lambda dataset: SequentialSampler(dataset)
    theirs = losses(unmodified)
    assert len(ours) == 8
    assert ours == pytest.approx(theirs, abs=1e-5)
    assert abs(ours[-1] - ours[0]) > 1e-2, "nothing moved, so equality says little"


def test_continued_adapter_is_its_own_reference(tiny_models, tmp_path: Path) -> None:
    """The first loss is ln 2 although the adapter is far from the base model, and the reference stays behind."""
    model = tiny_models("llama")
    train = {"max_steps": 10, "learning_rate": 3e-2, "warmup": 0.0}
    first = small_trainer(small_recipe(model, tmp_path, train=train))
    assert losses(first)[-1] < 0.6
    first.model.save_pretrained(tmp_path / "adapter", selected_adapters=["default"])

    recipe = small_recipe(model, tmp_path, train=train, adapter={"init_from": str(tmp_path / "adapter")})
    second = small_trainer(recipe)
    reference = {n: p.clone() for n, p in second.model.named_parameters() if ".ref." in n}
    assert losses(second)[0] == pytest.approx(0.693147, abs=1e-5)
    after = dict(second.model.named_parameters())
    assert reference
    assert all(torch.equal(value, after[name]) for name, value in reference.items())
    assert any(not torch.equal(value, after[name.replace(".ref.", ".default.")]) for name, value in reference.items())
    assert all("lora_" in name and ".ref." not in name for name, p in after.items() if p.requires_grad)


def test_precomputed_reference_of_a_continued_adapter_has_no_dropout(tiny_models, tmp_path: Path) -> None:
    """The adapter was saved with a dropout, which is active where nothing switches it off."""
    model = tiny_models("llama")
    first = small_trainer(small_recipe(model, tmp_path, adapter={"dropout": 0.5}, train={"learning_rate": 0.1}))
    first.train()
    first.model.save_pretrained(tmp_path / "adapter")
    assert PeftModel.from_pretrained(load_model(small_recipe(model, tmp_path).model), tmp_path / "adapter").peft_config[
        "default"
    ].lora_dropout == pytest.approx(0.5)
    recipe = small_recipe(
        model,
        tmp_path,
        adapter={"init_from": str(tmp_path / "adapter")},
    )
    second = small_trainer(recipe)
    live = small_recipe(
        model,
        tmp_path,
        adapter={"init_from": str(tmp_path / "adapter")},
        dpo={"reference": "live"},
        train={"trees": "off"},
    )
    expected = small_trainer(live)
    batch = expected.data_collator([expected.train_dataset[n] for n in range(4)])
    del batch["pair_weights"]
    chosen, rejected = expected.compute_ref_log_probs(expected.model, batch)
    assert second.train_dataset["ref_chosen_logps"] == pytest.approx(chosen.tolist(), abs=1e-4)
    assert second.train_dataset["ref_rejected_logps"] == pytest.approx(rejected.tolist(), abs=1e-4)


@pytest.mark.parametrize(
    ("trees", "dropout", "used"), [("auto", 0.0, True), ("on", 0.0, True), ("off", 0.0, False), ("auto", 0.1, False)]
)
def test_trees_are_used_as_the_recipe_says(
    tiny_models, tmp_path: Path, trees: str, dropout: float, used: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = small_recipe(tiny_models("llama"), tmp_path, train={"trees": trees}, adapter={"dropout": dropout})
    trainer = small_trainer(recipe)
    batch = trainer.data_collator([trainer.train_dataset[n] for n in range(4)])
    assert takes_trees(trainer.model) == ("tree" in batch) == used
    words = "Trees are off: dropout draws a mask for every repeated token."
    assert (words in " ".join(capsys.readouterr().err.split())) == (dropout > 0)
    assert losses(trainer)[0] == pytest.approx(0.693147, abs=1e-4)


def test_trees_that_turn_out_to_be_impossible_are_refused(tiny_models, tmp_path: Path) -> None:
    """As `check_trees` does before, where it can look at the model."""
    recipe = small_recipe(tiny_models("llama"), tmp_path, train={"trees": "on"})
    dropout = recipe.model_copy(update={"adapter": recipe.adapter.model_copy(update={"dropout": 0.1})})
    with pytest.raises(
        UserError, match="train.trees is on, but this model cannot use trees.\nThe reason: dropout draws"
    ):
        small_trainer(dropout)


def test_a_live_reference_gives_the_losses_of_a_cached_one(tiny_models, tmp_path: Path) -> None:
    found = {}
    for reference in ("cached", "live"):
        recipe = small_recipe(
            tiny_models("llama"), tmp_path, dpo={"reference": reference}, train={"max_steps": 4, "learning_rate": 1e-2}
        )
        trainer = small_trainer(recipe)
        assert ("ref_chosen_logps" in trainer.train_dataset.column_names) == (reference == "cached")
        found[reference] = losses(trainer)
    assert found["live"] == pytest.approx(found["cached"], abs=1e-5)
    assert found["live"][-1] < found["live"][0] - 1e-3


@pytest.mark.parametrize("weight", ["pair", "group"])
def test_pairs_or_prompts_weigh_the_same(tiny_models, tmp_path: Path, weight: str) -> None:
    """Three pairs of one prompt and one of another are a step."""
    recipe = small_recipe(tiny_models("llama"), tmp_path, train={"weight": weight})
    trainer = small_trainer(recipe)
    rows = trainer.train_dataset
    prompts = [rows[n // 3]["prompt_ids"] for n in range(4)]
    trainer.train_dataset = trainer.train_dataset.remove_columns("prompt_ids").add_column("prompt_ids", prompts)
    weights = {place.index: place.weight for part in trainer.train_plan().micro_batches(0) for place in part}
    shares = [weights[n] / sum(weights.values()) for n in range(4)]
    assert shares == pytest.approx([0.25] * 4 if weight == "pair" else [1 / 6, 1 / 6, 1 / 6, 1 / 2])


def test_workers_build_the_same_trees(tiny_models, tmp_path: Path) -> None:
    seen = []
    for workers in (0, 2):
        train = {"max_steps": 4, "trl": {"dataloader_num_workers": workers}}
        trainer = small_trainer(small_recipe(tiny_models("llama"), tmp_path, train=train), count=6)
        seen.append(losses(trainer))
        assert trainer.state.log_history[0]["tree/sharing"] > 1
    assert seen[0] == seen[1]


def test_full_method_trains_the_whole_model_against_a_copy(tiny_models, tmp_path: Path) -> None:
    train = {"max_steps": 4, "learning_rate": 1e-3, "warmup": 0.0}
    trainer = small_trainer(small_recipe(tiny_models("llama"), tmp_path, adapter={"method": "full"}, train=train))
    assert trainer.ref_model is not None
    seen = losses(trainer)
    assert seen[0] == pytest.approx(0.693147, abs=1e-5)
    assert seen[-1] < seen[0] - 1e-2
    original = AutoModelForCausalLM.from_pretrained(tiny_models("llama")).state_dict()
    reference = trainer.accelerator.unwrap_model(trainer.ref_model).state_dict()
    assert all(torch.equal(reference[name], value) for name, value in original.items())


def test_evaluation_runs_on_the_validation_pairs(tiny_models, tmp_path: Path) -> None:
    recipe = small_recipe(tiny_models("llama"), tmp_path, train={"max_steps": 2, "eval_steps": 1})
    trainer = small_trainer(recipe, validation=3)
    trainer.train()
    evaluations = [entry for entry in trainer.state.log_history if "eval_loss" in entry]
    assert [entry["step"] for entry in evaluations] == [1, 2]


def test_dataset_holds_the_three_columns(tiny_models, tmp_path: Path) -> None:
    pairs = tokenised(small_recipe(tiny_models("llama"), tmp_path))
    dataset = as_dataset(pairs)
    assert dataset.column_names == ["prompt_ids", "chosen_ids", "rejected_ids"]
    assert dataset[2] == {
        "prompt_ids": pairs[2].prompt_ids,
        "chosen_ids": pairs[2].chosen_ids,
        "rejected_ids": pairs[2].rejected_ids,
    }
