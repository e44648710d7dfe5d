"""What this package relies on inside TRL. A failure here says what to look at before TRL's pin is raised."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest
import torch
import trl
from transformers import Trainer
from trl import DPOTrainer
from trl.trainer.dpo_trainer import DataCollatorForPreference

from lora_dpo.training.trainer import as_dataset
from tests.small import small_recipe, small_trainer, tokenised


def test_version() -> None:
    assert trl.__version__.split(".")[:2] == ["1", "16"], "read this file's tests, then training/trainer.py"


def test_signatures_that_are_overridden() -> None:
    prepare = inspect.signature(DPOTrainer._prepare_dataset)
    assert list(prepare.parameters) == ["self", "dataset", "processing_class", "args", "dataset_name"]
    loss = inspect.signature(DPOTrainer.compute_loss)
    assert list(loss.parameters) == ["self", "model", "inputs", "return_outputs", "num_items_in_batch"]


def test_methods_of_trainer_that_checkpoints_pass_through() -> None:
    signatures = {
        "_save_checkpoint": ["self", "model", "trial"],
        "_prepare_for_training": ["self", "max_steps", "train_dataloader", "resume_from_checkpoint"],
        "_load_from_checkpoint": ["self", "resume_from_checkpoint", "model"],
        "_evaluate": ["self", "trial", "ignore_keys_for_eval", "skip_scheduler"],
        "_determine_best_metric": ["self", "metrics", "trial"],
    }
    for name, parameters in signatures.items():
        assert list(inspect.signature(getattr(Trainer, name)).parameters) == parameters
    assert list(inspect.signature(Trainer._init_training_state).parameters)[:2] == ["self", "max_steps"]
    assert "epoch" in inspect.signature(Trainer._run_epoch).parameters
    loop = inspect.getsource(Trainer._inner_training_loop)
    for name in ("_tr_loss", "_total_loss_scalar", "_globalstep_last_logged"):
        assert f"self.{name} = " in loop  # set anew before the first epoch, so that ours are given back after it
    steps = inspect.getsource(Trainer._run_epoch)
    assert steps.index("self._load_rng_state") < steps.index("self.training_step")
    assert steps.index("on_step_end") < steps.index("self._maybe_log_save_evaluate")
    after_a_step = inspect.getsource(Trainer._maybe_log_save_evaluate)
    order = [after_a_step.index(word) for word in ("self.log(", "self._evaluate(", "self._save_checkpoint(")]
    assert order == sorted(order)


def test_deepspeed_s_hooks_can_be_taken_down() -> None:
    zero = pytest.importorskip("deepspeed.runtime.zero.parameter_offload")
    assert "_remove_module_hooks" in inspect.getsource(zero.DeepSpeedZeRoOffload.destroy)
    coordinator = zero.PartitionedParameterCoordinator
    assert callable(coordinator._invalidate_trace)
    assert callable(coordinator.is_invalid_trace)


def test_collator_puts_chosen_rows_first() -> None:
    batch = DataCollatorForPreference(pad_token_id=0)(
        [
            {"prompt_ids": [1, 2, 3], "chosen_ids": [4, 5], "rejected_ids": [6]},
            {"prompt_ids": [7], "chosen_ids": [8], "rejected_ids": [9, 10, 11]},
        ]
    )
    assert set(batch) == {"input_ids", "attention_mask", "completion_mask"}
    assert batch["input_ids"].tolist() == [[1, 2, 3, 4, 5], [7, 8, 0, 0, 0], [1, 2, 3, 6, 0], [7, 9, 10, 11, 0]]
    assert batch["attention_mask"].tolist() == [[1] * 5, [1, 1, 0, 0, 0], [1] * 4 + [0], [1] * 4 + [0]]
    assert batch["completion_mask"].tolist() == [[0, 0, 0, 1, 1], [0, 1, 0, 0, 0], [0, 0, 0, 1, 0], [0, 1, 1, 1, 0]]


def test_tokenised_data_reaches_the_batch_unchanged(tiny_models, tmp_path: Path) -> None:
    recipe = small_recipe(tiny_models("gemma2"), tmp_path, dpo={"reference": "live"})
    pairs = tokenised(recipe)
    trainer = small_trainer(recipe, validation=2)
    assert trainer.train_dataset[:] == as_dataset(pairs)[:]
    assert trainer.eval_dataset[:] == as_dataset(pairs[:2])[:]
    batch = next(iter(trainer.get_eval_dataloader()))
    rows = [ids[mask.bool()].tolist() for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)]
    assert rows == [p.prompt_ids + p.chosen_ids for p in pairs[:2]] + [p.prompt_ids + p.rejected_ids for p in pairs[:2]]
    scored = [ids[mask.bool()].tolist() for ids, mask in zip(batch["input_ids"], batch["completion_mask"], strict=True)]
    assert scored == [p.chosen_ids for p in pairs[:2]] + [p.rejected_ids for p in pairs[:2]]


def test_a_long_answer_is_not_cut_by_the_collator(tiny_models, tmp_path: Path) -> None:
    """TRL's default is 1024 tokens from the start, which would cut the end of turn off."""
    trainer = small_trainer(small_recipe(tiny_models("llama"), tmp_path))
    batch = trainer.data_collator([{"prompt_ids": [5] * 10, "chosen_ids": [6] * 3000, "rejected_ids": [7]}])
    assert batch["input_ids"].shape == (2, 3010)


def test_forward_gives_log_probs_of_the_next_tokens(tiny_models, tmp_path: Path) -> None:
    trainer = small_trainer(small_recipe(tiny_models("llama"), tmp_path))
    batch = trainer.data_collator([trainer.train_dataset[n] for n in range(2)])
    inputs = {key: batch[key] for key in ("input_ids", "attention_mask")}
    labels = batch["input_ids"].masked_fill(batch["completion_mask"] == 0, -100)
    with torch.no_grad():
        fused = trainer.model(**inputs, labels=labels, fused_lm_head=True)
        logits = trainer.model(**inputs).logits
    plain = logits[:, :-1].log_softmax(-1).gather(-1, batch["input_ids"][:, 1:, None]).squeeze(-1)
    scored = batch["completion_mask"][:, 1:].bool()
    assert fused.log_probs.shape == scored.shape
    torch.testing.assert_close(fused.log_probs[scored], plain[scored], atol=1e-5, rtol=0)
    assert fused.log_probs[~scored].abs().max() == 0


def test_continued_adapter_gets_a_reference_copy(tiny_models, tmp_path: Path) -> None:
    first = small_trainer(small_recipe(tiny_models("llama"), tmp_path, train={"learning_rate": 0.1}))
    first.train()
    first.model.save_pretrained(tmp_path / "adapter")
    trainer = small_trainer(
        small_recipe(tiny_models("llama"), tmp_path, adapter={"init_from": str(tmp_path / "adapter")})
    )
    assert set(trainer.model.peft_config) == {"default", "ref"}
    parameters = dict(trainer.model.named_parameters())
    copies = {name: value for name, value in parameters.items() if ".ref." in name}
    assert len(copies) == 2 * 14
    for name, value in copies.items():
        assert torch.equal(value, parameters[name.replace(".ref.", ".default.")])
        assert not value.requires_grad
    assert any(value.abs().max() > 0 for name, value in copies.items() if "lora_B" in name)


def test_fresh_adapter_needs_no_reference_model(tiny_models, tmp_path: Path) -> None:
    trainer = small_trainer(small_recipe(tiny_models("llama"), tmp_path))
    assert trainer.ref_model is None
    assert set(trainer.model.peft_config) == {"default"}


def test_attributes_that_the_first_loss_check_reads(tiny_models, tmp_path: Path) -> None:
    trainer = small_trainer(small_recipe(tiny_models("llama"), tmp_path))
    assert trainer.aux_loss_enabled is False
    assert trainer.router_aux_loss_coef == 0.0
    assert set(trainer._metrics) == {"train", "eval"}
