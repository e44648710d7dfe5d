"""A plain TRL script, with and without the one line, on the same batches: the same training."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from torch.utils.data import SequentialSampler
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import DPOConfig, DPOTrainer

from lora_dpo.tree import Batching, enable
from tests.parity.models import ARCHITECTURES

STEPS, BATCH = 20, 4


def conversations(count: int, *, plain: bool) -> list[dict[str, Any]]:
    """Pairs of three a prompt; some answers are shared, or begin alike, or have one word."""
    draw = random.Random(0)
    words = ["yes", "no", "maybe", "seven", "because", "the", "sky", "is", "always", "blue", "and", "never", "green"]
    rows = []
    for number in range(count):
        prompt = f"Question {number // 3}: what is {number // 3} plus two?"
        chosen = f"It is {number // 3 + 2}." if number % 3 < 2 else "Two more."
        rejected = " ".join([chosen[:5], *draw.choices(words, k=draw.randint(1, 12))])
        if plain:
            rows.append({"prompt": prompt, "chosen": " " + chosen, "rejected": " " + rejected})
        else:
            answers = {"chosen": chosen, "rejected": rejected if number % 5 else "No"}
            turns = {side: [{"role": "assistant", "content": text}] for side, text in answers.items()}
            rows.append({"prompt": [{"role": "user", "content": prompt}], **turns})
    return rows


def trainer(
    folder: Path, architecture: str, output: Path, order: list[int] | None = None, **options: Any
) -> DPOTrainer:
    """What a script of TRL's documentation makes; with an order, rows are taken in it."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    rows = conversations(16, plain=tokenizer.chat_template is None)
    attention = "eager" if architecture in {"gemma2", "gptj"} else "sdpa"
    torch.manual_seed(0)
    made = DPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation=attention),
        args=DPOConfig(
            output_dir=str(output), per_device_train_batch_size=BATCH, max_steps=STEPS, learning_rate=1e-3, bf16=False,
            logging_steps=1, report_to="none", save_strategy="no", use_cpu=True, disable_tqdm=True, seed=0,
            gradient_checkpointing=False, **options,
        ),
        train_dataset=Dataset.from_list(rows if order is None else [rows[index] for index in order]),
        processing_class=tokenizer,
        # B is not zero, so that every gradient is.
        peft_config=LoraConfig(
            r=4, target_modules="all-linear", init_lora_weights=False, fan_in_fan_out=architecture == "gpt2"
        ),
    )  # fmt: skip
    if order is not None:
        made._get_train_sampler = SequentialSampler
    return made


def trained(made: DPOTrainer) -> tuple[list[dict[str, float]], dict[str, torch.Tensor]]:
    made.train()
    log = [entry for entry in made.state.log_history if "loss" in entry]
    return log, {name: value.detach() for name, value in made.model.named_parameters() if value.requires_grad}


def planned_order(made: DPOTrainer) -> list[int]:
    epochs = range(-(-STEPS * BATCH // 16))
    return [place.index for epoch in epochs for part in made.train_plan().micro_batches(epoch) for place in part]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_twenty_steps_are_those_of_the_unmodified_trainer(architecture: str, tiny_models, tmp_path: Path) -> None:
    folder = tiny_models(architecture)
    with_trees = trainer(folder, architecture, tmp_path)
    assert enable(with_trees) is None
    plain = trainer(folder, architecture, tmp_path, planned_order(with_trees))
    ours, parameters = trained(with_trees)
    theirs, expected = trained(plain)
    assert len(ours) == len(theirs) == STEPS
    assert [entry["loss"] for entry in ours] == pytest.approx([entry["loss"] for entry in theirs], abs=1e-5)
    # Everything that TRL logs is there, and the same.
    skipped = {"epoch", "step", "grad_norm"}
    for found, reference in zip(ours, theirs, strict=True):
        assert reference.keys() <= found.keys()
        for key in reference.keys() - skipped:
            assert found[key] == pytest.approx(reference[key], rel=1e-4, abs=2e-4), key
        assert found["tree/sharing"] > 1.5
    for name, value in expected.items():
        assert (parameters[name] - value).abs().max() <= 1e-4 * value.abs().max() + 1e-6, name
    assert abs(ours[-1]["loss"] - ours[0]["loss"]) > 1e-3, "nothing moved, so equality says little"


@pytest.mark.parametrize("loss", ["ipo", "aot", "robust", "bco_pair", "sigmoid_norm", "sft"])
@pytest.mark.parametrize("options", [{}, {"use_weighting": True}, {"ld_alpha": 0.5}], ids=["", "wpo", "ld"])
def test_every_kind_of_loss_gets_what_it_asks_for(
    loss: str, options: dict[str, Any], tiny_models, tmp_path: Path
) -> None:
    if loss in {"aot", "sft"} and options.get("use_weighting"):
        pytest.skip("TRL refuses the combination with aot, and fails at the one with sft")
    options |= {"loss_type": [loss], "label_smoothing": 0.1}
    folder = tiny_models("gemma2")
    with_trees = trainer(folder, "gemma2", tmp_path, **options)
    assert enable(with_trees) is None
    plain = trainer(folder, "gemma2", tmp_path, planned_order(with_trees), **options)
    ours, theirs = ([entry["loss"] for entry in trained(made)[0]] for made in (with_trees, plain))
    assert ours == pytest.approx(theirs, abs=1e-5, rel=1e-5)


def test_a_reference_that_trl_precomputed_is_computed_again(tiny_models, tmp_path: Path) -> None:
    folder = tiny_models("llama")
    with_trees = trainer(folder, "llama", tmp_path, precompute_ref_log_probs=True)
    columns = {name: list(with_trees.train_dataset[name]) for name in ("ref_chosen_logps", "ref_rejected_logps")}
    with_trees.train_dataset = with_trees.train_dataset.remove_columns(list(columns)).map(
        lambda row: {"ref_chosen_logps": 1.0, "ref_rejected_logps": 2.0}
    )
    assert enable(with_trees) is None
    for name, values in columns.items():
        assert list(with_trees.train_dataset[name]) == pytest.approx(values, abs=1e-4)
    live = trainer(folder, "llama", tmp_path)
    assert enable(live) is None
    cached, expected = (trained(made)[0] for made in (with_trees, live))
    assert [entry["loss"] for entry in cached] == pytest.approx([entry["loss"] for entry in expected], abs=1e-5)


def test_gradient_accumulation_does_not_change_the_step(tiny_models, tmp_path: Path) -> None:
    """Cut by tokens, micro-batches have 1, 2 or 3 of a step's 8 pairs; the step is the mean over the 8 all the same."""
    logs = []
    for accumulation, tokens in ((1, None), (2, None), (8, None), (3, 150)):
        made = trainer(tiny_models("llama"), "llama", tmp_path, gradient_accumulation_steps=accumulation)
        enable(made, Batching(tokens=tokens, global_batch=8))
        steps = [sorted(step) for step in made.train_plan().steps(0)]
        sizes = [len(part) for part in made.train_plan().micro_batches(0)]
        logs.append((steps, sizes, *trained(made)))
    assert len(set(logs[-1][1])) > 1, "the micro-batches cut by tokens are to be of unequal sizes"
    expected_steps, _, expected, final = logs[0]
    for steps, _, log, parameters in logs[1:]:
        assert steps == expected_steps
        for key, tolerance in (("loss", 1e-5), ("rewards/margins", 1e-4), ("entropy", 1e-4), ("logps/chosen", 1e-3)):
            assert [e[key] for e in log] == pytest.approx([e[key] for e in expected], abs=tolerance), key
        assert [e["num_tokens"] for e in log] == [e["num_tokens"] for e in expected]
        assert all((parameters[name] - value).abs().max() < 1e-4 for name, value in final.items())


def test_the_mean_over_prompts(tiny_models, tmp_path: Path) -> None:
    """A prompt's pairs share its weight: with one prompt of one pair and one of three, each counts half."""
    made = trainer(tiny_models("llama"), "llama", tmp_path)
    enable(made, Batching(equal_prompts=True))
    pairs = [made.train_dataset[index] for index in (0, 3, 4, 5)]  # the last three have one prompt
    weights = [0.5, 0.5 / 3, 0.5 / 3, 0.5 / 3]
    batch = made.data_collator([dict(pair, weight=weight) for pair, weight in zip(pairs, weights, strict=True)])
    made.model.train()
    loss = made.compute_loss(made.model, batch)
    alone = [made.compute_loss(made.model, made.data_collator([dict(pair, weight=1.0)])) for pair in pairs]
    assert loss.item() == pytest.approx(sum(w * each.item() for w, each in zip(weights, alone, strict=True)), abs=1e-6)
    parameters = [value for value in made.model.parameters() if value.requires_grad]
    found = torch.autograd.grad(loss, parameters)
    expected = torch.autograd.grad(sum(w * each for w, each in zip(weights, alone, strict=True)), parameters)
    assert max((a - b).abs().max() / b.abs().max() for a, b in zip(found, expected, strict=True)) < 1e-5
