from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, PromptTuningConfig, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BloomConfig,
    CohereConfig,
    FalconMambaConfig,
    GPTNeoConfig,
    GraniteConfig,
    MixtralConfig,
    PretrainedConfig,
    Qwen3NextConfig,
)
from transformers.activations import GELUTanh, NewGELUActivation
from trl import DPOConfig, DPOTrainer
from trl.trainer.utils import add_fused_lm_head

from lora_dpo.model.base import load_model
from lora_dpo.recipe.schema import ModelSection
from lora_dpo.tree import Batching, enable
from lora_dpo.tree.hf import check_model, fuse_activations, teach_trees
from tests.parity.models import OUTPUTS, collated, hard_pairs

SMALL = {"vocab_size": 700, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}


def rows(count: int) -> Dataset:
    return Dataset.from_list(
        [{"prompt": f"What is {n} + 1? ", "chosen": f"It is {n + 1}.", "rejected": f"It is {n}."} for n in range(count)]
    )


def trainer_of(model: torch.nn.Module, tokenizer_folder: Path, output: Path, **options: Any) -> DPOTrainer:
    peft_config = options.pop("peft_config", LoraConfig(r=2, target_modules="all-linear"))
    evaluated = options.pop("eval_dataset", None)
    settings: dict[str, Any] = {"per_device_train_batch_size": 2, "max_steps": 2, "bf16": False, **options}
    return DPOTrainer(
        model=model,
        args=DPOConfig(output_dir=str(output), report_to="none", use_cpu=True, disable_tqdm=True, **settings),
        train_dataset=rows(8),
        eval_dataset=evaluated,
        processing_class=AutoTokenizer.from_pretrained(tokenizer_folder),
        peft_config=peft_config,
    )


def reason_of(made: DPOTrainer, *batching: Batching) -> str:
    with pytest.warns(UserWarning, match=r"^Trees are off: .*\.$") as caught:
        reason = enable(made, *batching)
    assert reason is not None
    assert f"Trees are off: {reason}." in [str(warning.message) for warning in caught]
    return reason


CANNOT: dict[str, tuple[PretrainedConfig, str]] = {
    "alibi": (BloomConfig(vocab_size=700, hidden_size=32, n_layer=2, n_head=4), "BloomForCausalLM"),
    "a window by index": (
        GPTNeoConfig(
            vocab_size=700, hidden_size=32, num_layers=2, num_heads=4, attention_types=[[["local"], 2]], window_size=6
        ),
        "see more than what stands before it",
    ),
    "a recurrent model": (
        FalconMambaConfig(vocab_size=700, hidden_size=32, num_hidden_layers=2, state_size=4),
        "layers of type linear_attention",
    ),
    "linear attention": (
        Qwen3NextConfig(
            **SMALL, intermediate_size=32, num_key_value_heads=2, head_dim=8, linear_num_value_heads=4,
            linear_num_key_heads=2, linear_key_head_dim=8, linear_value_head_dim=8, num_experts=0,
            mlp_only_layers=[0, 1],
            layer_types=["linear_attention", "full_attention"], output_router_logits=False, router_aux_loss_coef=0.0,
        ),
        "layers of type linear_attention",
    ),
    "a router": (
        MixtralConfig(
            **SMALL, intermediate_size=32, num_key_value_heads=2, num_local_experts=4, router_aux_loss_coef=0.1
        ),
        "a router's loss",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CANNOT)
def test_a_model_that_cannot_goes_on_without_trees(name: str, tiny_models, tmp_path: Path) -> None:
    config, expected = CANNOT[name]
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    attention = model.config._attn_implementation
    adapter = LoraConfig(r=2, target_modules=["in_proj"] if name == "a recurrent model" else "all-linear")
    made = trainer_of(model, tiny_models("gpt2"), tmp_path, peft_config=adapter, logging_steps=1)
    assert expected in reason_of(made)
    assert model.config._attn_implementation == attention
    made.train()
    (first, *_) = (entry["loss"] for entry in made.state.log_history if "loss" in entry)
    assert "tree" not in made.data_collator([made.train_dataset[0]])
    assert first < 1.5  # ln 2, and the router's loss where there is one


@pytest.mark.parametrize("name", CANNOT)
def test_a_model_that_cannot_is_known_before_there_is_a_trainer(name: str, tmp_path: Path) -> None:
    config, expected = CANNOT[name]
    model = AutoModelForCausalLM.from_config(config)
    attention = model.config._attn_implementation
    reason = check_model(model, DPOConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False))
    assert reason is not None and expected in reason
    assert model.config._attn_implementation == attention


@pytest.mark.parametrize("architecture", ["llama", "gemma2", "gptj"])
def test_a_model_that_can_stays_as_it_was(architecture: str, tiny_models, tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_models(architecture), dtype=torch.float32).train()
    forward, attention = model.forward, model.config._attn_implementation
    assert check_model(model, DPOConfig(output_dir=str(tmp_path / "none"), use_cpu=True, bf16=False)) is None
    assert model.forward == forward
    assert (model.config._attn_implementation, model.training) == (attention, True)
    assert list(tmp_path.iterdir()) == []


def test_a_router_without_a_loss_is_no_reason(tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_config(CANNOT["a router"][0])
    assert check_model(model, DPOConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False)) is not None
    arguments = DPOConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False, router_aux_loss_coef=0.0)
    assert check_model(model, arguments) is None


def test_dropout_and_virtual_tokens(tiny_models, tmp_path: Path) -> None:
    folder = tiny_models("llama")
    load = lambda: AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)  # noqa: E731 - twice the same
    dropout = LoraConfig(r=2, target_modules="all-linear", lora_dropout=0.1)
    made = trainer_of(load(), folder, tmp_path, peft_config=dropout, disable_dropout=False)
    assert "dropout" in reason_of(made)
    silenced = trainer_of(load(), folder, tmp_path, peft_config=dropout)
    assert enable(silenced) is None
    virtual = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    assert "virtual tokens" in reason_of(trainer_of(load(), folder, tmp_path, peft_config=virtual))


def test_dropout_that_no_module_holds(tiny_models, tmp_path: Path) -> None:
    folder = tiny_models("llama")
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attention_dropout=0.5)
    assert "dropout" in reason_of(trainer_of(model, folder, tmp_path))


def test_a_stream_goes_on_as_trl_does(tiny_models, tmp_path: Path) -> None:
    folder = tiny_models("llama")
    made = trainer_of(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32), folder, tmp_path)
    made.train_dataset = made.train_dataset.to_iterable_dataset()
    assert "streamed" in reason_of(made)
    made.train()
    assert made.state.global_step == 2


def test_once_is_enough(tiny_models, tmp_path: Path) -> None:
    folder = tiny_models("llama")
    made = trainer_of(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32), folder, tmp_path)
    assert enable(made) is None
    with pytest.raises(ValueError, match="uses trees already"):
        enable(made)


def test_a_prediction_leaves_evaluations_alone(tiny_models, tmp_path: Path) -> None:
    folder = tiny_models("llama")
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    made = trainer_of(model, folder, tmp_path, eval_dataset=rows(5), per_device_eval_batch_size=2)
    enable(made)
    made.train()
    before = made.evaluate()["eval_loss"]
    made.predict(made.train_dataset)
    assert made.evaluate()["eval_loss"] == before


def test_batching_that_does_not_fit_the_loss(tiny_models, tmp_path: Path) -> None:
    folder = tiny_models("llama")
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    made = trainer_of(model, folder, tmp_path, loss_type=["aot"])
    with pytest.raises(ValueError, match="the loss aot is no mean over pairs"):
        enable(made, Batching(tokens=100))


@pytest.mark.parametrize("architecture", ["llama", "gemma2", "gptj"])
def test_calls_without_a_tree_are_what_they_were(architecture: str, tiny_models) -> None:
    model = AutoModelForCausalLM.from_pretrained(
        tiny_models(architecture),
        dtype=torch.float32,
        attn_implementation="sdpa" if architecture == "llama" else "eager",
    )
    model.eval()
    batch = collated(hard_pairs())
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    with torch.no_grad():
        expected = model(**inputs).logits
        words = model.generate(batch["input_ids"][:2, :5], max_new_tokens=6, do_sample=False)
        add_fused_lm_head(model)
        teach_trees(model)
        assert torch.equal(model(**inputs).logits, expected)
        assert torch.equal(model.generate(batch["input_ids"][:2, :5], max_new_tokens=6, do_sample=False), words)


@pytest.mark.parametrize("architecture", ["gpt2", "gptj"])
def test_the_written_out_gelu_becomes_one_kernel(architecture: str, tiny_models) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_models(architecture), dtype=torch.float32).eval()
    ids = torch.arange(5, 45)[None]
    with torch.no_grad():
        expected = model(ids).logits
        before = model.config.to_dict()
        fuse_activations(model)
        assert torch.allclose(model(ids).logits, expected, atol=1e-5)
    kinds = {type(module) for module in model.modules()}
    assert NewGELUActivation not in kinds
    assert GELUTanh in kinds
    assert model.config.to_dict() == before


@pytest.mark.parametrize("config", [GraniteConfig, CohereConfig])
def test_scaled_logits(config: type[PretrainedConfig], tmp_path: Path) -> None:
    """Granite divides its logits, Cohere multiplies them; TRL's fused head knows both."""
    torch.manual_seed(0)
    scale = {"logits_scaling": 4.0} if config is GraniteConfig else {"logit_scale": 0.25}
    model = AutoModelForCausalLM.from_config(config(**SMALL, **scale, intermediate_size=32, num_key_value_heads=2))
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(40)
    add_fused_lm_head(model, outputs=OUTPUTS)
    teach_trees(model)
    batch = collated(hard_pairs())
    labels = batch["input_ids"].masked_fill(batch["completion_mask"] == 0, -100)
    inputs = {key: batch[key] for key in ("input_ids", "attention_mask")} | {"labels": labels, "fused_lm_head": True}
    with torch.no_grad():
        plain, treed = model(**inputs), model(**inputs, tree=batch["tree"])
    assert (plain.log_probs - treed.log_probs).abs().max() < 1e-4
    assert (plain.mean_logits - treed.mean_logits).abs().max() < 1e-4


def test_four_bit_weights(tiny_models) -> None:
    pytest.importorskip("bitsandbytes")
    torch.manual_seed(0)
    model = load_model(ModelSection(name=str(tiny_models("llama"))), four_bit=True)
    add_fused_lm_head(model, outputs=OUTPUTS)
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False))
    teach_trees(model)
    batch = collated(hard_pairs())
    labels = batch["input_ids"].masked_fill(batch["completion_mask"] == 0, -100)
    inputs = {key: batch[key] for key in ("input_ids", "attention_mask")} | {"labels": labels, "fused_lm_head": True}
    trained = [value for value in adapted.parameters() if value.requires_grad]
    upstream = torch.randn(batch["tree"].slots.shape)
    plain, treed = adapted(**inputs).log_probs, adapted(**inputs, tree=batch["tree"]).log_probs
    assert (plain.sum(1) - treed.sum(1)).abs().max() < 1e-4
    expected, found = (torch.autograd.grad(each, trained, upstream) for each in (plain, treed))
    assert max((a - b).abs().max() / b.abs().max() for a, b in zip(found, expected, strict=True)) < 2e-5


def test_a_whole_model_with_a_reference_of_its_own(tiny_models, tmp_path: Path) -> None:
    folder = tiny_models("llama")
    logs: list[list[float]] = []
    order: list[int] = []
    for trees in (True, False):
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        made = trainer_of(model, folder, tmp_path, peft_config=None, max_steps=3, logging_steps=1, learning_rate=1e-2)
        if trees:
            assert enable(made) is None
            order = [place.index for part in made.train_plan().micro_batches(0) for place in part]
        else:
            made._get_train_sampler = lambda _, order=order: order
        made.train()
        logs.append([entry["loss"] for entry in made.state.log_history if "loss" in entry])
    assert logs[0] == pytest.approx(logs[1], abs=1e-5)
    assert logs[0][0] == pytest.approx(0.693147, abs=1e-6)
    assert abs(logs[0][-1] - logs[0][0]) > 1e-3


def test_evaluation_is_a_mean_over_pairs_whatever_the_batches(tiny_models, tmp_path: Path) -> None:
    folder = tiny_models("llama")
    found = []
    for size in (2, 3, 7):
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        torch.manual_seed(0)
        made = trainer_of(
            model, folder, tmp_path, eval_dataset={"one": rows(7), "two": rows(3)}, per_device_eval_batch_size=size,
            peft_config=LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False),
        )  # fmt: skip
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)
            enable(made)
        found.append(made.evaluate())
    for key in ("eval_one_loss", "eval_two_loss", "eval_rewards/margins", "eval_entropy"):
        values = [metrics[key] for metrics in found if key in metrics]
        assert len(values) == 3
        assert values == pytest.approx([values[0]] * 3, abs=1e-6)
    assert found[0]["eval_one_loss"] != found[0]["eval_two_loss"]
