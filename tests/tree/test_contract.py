"""What trees rely on inside TRL, Transformers, Accelerate and torch. A failure says what to read before a pin moves."""

from __future__ import annotations

import inspect
from pathlib import Path

import torch
from accelerate.data_loader import BatchSamplerShard
from transformers import AutoModelForCausalLM, PreTrainedModel, Trainer
from transformers.masking_utils import create_causal_mask
from transformers.trainer_pt_utils import find_batch_size
from trl import DPOTrainer
from trl.trainer.dpo_trainer import DataCollatorForPreference
from trl.trainer.utils import FusedCausalLMOutput, maybe_gather_lm_head_ctx

from lora_dpo.tree.hf import PlannedTrainer
from lora_dpo.tree.pairs import PairTokens
from lora_dpo.tree.planned import PlannedLoop
from lora_dpo.tree.reference import ReferencePass
from lora_dpo.tree.sampler import MicroBatchSampler, PairPlan, Shape
from tests.tree.test_hf import trainer_of

# Each is a mean over something that PlannedTrainer._tally knows; a new one must be given its count there.
METRICS = {
    "entropy", "logits/chosen", "logits/rejected", "mean_token_accuracy", "rewards/chosen", "rewards/rejected",
    "rewards/accuracies", "rewards/margins", "logps/chosen", "logps/rejected", "num_tokens",
}  # fmt: skip


def parameters(function: object) -> list[str]:
    return list(inspect.signature(function).parameters)


def test_methods_that_are_overridden_or_called() -> None:
    assert parameters(DPOTrainer._compute_loss) == ["self", "model", "inputs", "return_outputs"]
    assert parameters(DPOTrainer._precompute_ref_logps) == ["self", "dataset", "name", "batch_size"]
    assert parameters(DPOTrainer.compute_ref_log_probs) == ["self", "model", "inputs"]
    assert parameters(DPOTrainer.log) == ["self", "logs", "start_time"]
    assert parameters(Trainer.get_eval_dataloader) == ["self", "eval_dataset"]
    assert parameters(maybe_gather_lm_head_ctx) == ["params"]
    ours = vars(PlannedTrainer) | vars(PlannedLoop) | vars(ReferencePass)
    for name in ("get_train_dataloader", "get_eval_dataloader", "log", "_compute_loss", "_precompute_ref_logps"):
        assert hasattr(DPOTrainer, name) and name in ours


def test_attributes_of_a_trainer(tiny_models, tmp_path: Path) -> None:
    folder = tiny_models("llama")
    made = trainer_of(AutoModelForCausalLM.from_pretrained(folder), folder, tmp_path, logging_steps=1)
    assert made.loss_types == ["sigmoid"]
    assert (made.precompute_ref_logps, made.aux_loss_enabled, made._is_vision_dataset) == (False, False, False)
    assert (made._precompute_engine, made._total_train_tokens, made.loss_is_scaled_for_ga) == (None, 0, False)
    assert isinstance(made.data_collator, DataCollatorForPreference)
    made.train()
    first = made.state.log_history[0]
    assert first.keys() - {"loss", "grad_norm", "learning_rate", "epoch", "step"} == METRICS


def test_unknown_keys_of_a_batch_reach_the_model(tiny_models, tmp_path: Path) -> None:
    folder = tiny_models("llama")
    made = trainer_of(AutoModelForCausalLM.from_pretrained(folder), folder, tmp_path)
    seen = []

    def model(**kwargs: object) -> FusedCausalLMOutput:
        seen.append(kwargs)
        return made.model(**{name: value for name, value in kwargs.items() if name != "tree"})

    batch = made.data_collator([made.train_dataset[0], made.train_dataset[1]])
    made._compute_loss(model, batch | {"tree": "a tree"}, False)
    assert seen[0]["tree"] == "a tree"
    assert seen[0]["fused_lm_head"] is True
    assert seen[0].keys() == {"input_ids", "attention_mask", "labels", "use_cache", "fused_lm_head", "tree"}


def test_the_fused_head_s_answer() -> None:
    assert list(FusedCausalLMOutput.__dataclass_fields__) == [
        "loss", "log_probs", "entropy", "log_sum_sq_probs", "mean_logits", "is_top1", "label_mask", "aux_loss",
    ]  # fmt: skip


def test_transformers_makes_no_mask_where_it_is_given_four_axes(tiny_models) -> None:
    config = AutoModelForCausalLM.from_pretrained(tiny_models("llama")).config
    mask = torch.empty(1, 1, 1, 1)
    assert create_causal_mask(config, torch.empty(1, 7, 4), mask, None) is mask
    assert PreTrainedModel._supports_attention_backend is False


def test_trainer_takes_the_batch_size_from_the_first_tensor() -> None:
    assert find_batch_size({"pair_weights": torch.ones(1, 5), "input_ids": torch.ones(10, 3)}) == 1


def test_accelerate_deals_batches_in_turn() -> None:
    """All of them, although they have different numbers of pairs."""
    pairs = [
        PairTokens([question], [place], [20 + place] * place, question) for question in range(4) for place in range(5)
    ]
    plan = PairPlan(pairs, Shape(8, 2, 2), seed=0)
    batches = plan.micro_batches(0)
    assert len({len(batch) for batch in batches}) > 1
    for rank in (0, 1):
        shard = BatchSamplerShard(MicroBatchSampler(plan), num_processes=2, process_index=rank, even_batches=False)
        assert list(shard) == batches[rank::2]
        assert len(shard) == len(batches) / 2


def test_trainer_tells_the_plan_its_epoch() -> None:
    source = inspect.getsource(Trainer._run_epoch)
    assert "underlying_sampler.set_epoch(epoch)" in source


def test_torch_s_fused_attention_on_a_cpu() -> None:
    forward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default._schema
    assert [argument.name for argument in forward.arguments] == [
        "query", "key", "value", "dropout_p", "is_causal", "attn_mask", "scale",
    ]  # fmt: skip
    backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward.default._schema
    assert [argument.name for argument in backward.arguments] == [
        "grad_out", "query", "key", "value", "out", "logsumexp", "dropout_p", "is_causal", "attn_mask", "scale",
    ]  # fmt: skip
