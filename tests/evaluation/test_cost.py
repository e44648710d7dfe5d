from __future__ import annotations

import random

import pytest
import torch
from trl.trainer.utils import add_fused_lm_head

from lora_dpo.evaluation import logits as logits_module
from lora_dpo.evaluation.cost import count_wins, divergence, divergences
from lora_dpo.evaluation.policies import Policies
from lora_dpo.evaluation.work import Work
from lora_dpo.model.base import load_model
from lora_dpo.recipe.schema import ModelSection
from lora_dpo.tree.hf import teach_trees
from tests.evaluation.models import tiny_policies
from tests.tiny import ARCHITECTURES

LENGTHS = [(3, 2), (20, 9), (7, 30), (1, 1)]  # prompt and answer; some past Gemma-2's window of 16


def texts(vocabulary: int) -> tuple[list[list[int]], list[list[int]]]:
    draw = random.Random(0)
    prompts, answers = (
        [[draw.randrange(10, vocabulary) for _ in range(lengths[part])] for lengths in LENGTHS] for part in (0, 1)
    )
    return prompts, answers


@torch.no_grad()
def one_token_at_a_time(policies: Policies, prompt: list[int], answer: list[int]) -> float:
    """Sums p (log p - log q) over the vocabulary and the answer, in float64 on unpadded passes of both models."""
    total = 0.0
    for place in range(len(answer)):
        seen = torch.tensor([prompt + answer[:place]])
        with policies.after() as model:
            log_p = model(input_ids=seen).logits[0, -1].double().log_softmax(-1)
        with policies.before() as model:
            log_q = model(input_ids=seen).logits[0, -1].double().log_softmax(-1)
        total += (log_p.exp() * (log_p - log_q)).sum().item()
    return total


def test_divergence_by_hand() -> None:
    # p = (1/2, 1/2), q = (1/4, 3/4): 1/2 log 2 + 1/2 log(2/3) = log(2 / sqrt 3); the other way round
    # 1/4 log(1/2) + 3/4 log(3/2).
    p, q = torch.tensor([[0.5, 0.5]]).log(), torch.tensor([[0.25, 0.75]]).log()
    assert divergences(p, q).tolist() == pytest.approx([0.1438410], abs=1e-6)
    assert divergences(q, p).tolist() == pytest.approx([0.1308120], abs=1e-6)


def test_a_shift_of_all_logits_is_no_divergence() -> None:
    logits = torch.randn(5, 40, generator=torch.Generator().manual_seed(0))
    assert divergences(logits, logits).tolist() == [0.0] * 5
    assert divergences(logits, logits + 7.0).tolist() == pytest.approx([0.0] * 5, abs=1e-6)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_equals_one_token_at_a_time(architecture: str, tiny_models) -> None:
    policies, _ = tiny_policies(tiny_models(architecture))
    prompts, answers = texts(policies.trained.config.vocab_size)
    expected = [one_token_at_a_time(policies, *pair) for pair in zip(prompts, answers, strict=True)]
    result = divergence(Work(), policies, prompts, answers, batch_size=3)
    assert result["nats"] == pytest.approx(expected, rel=1e-4, abs=1e-5)
    assert result["tokens"] == [2, 9, 30, 1]
    assert result["per_token"] == pytest.approx(sum(expected) / 42, rel=1e-4)
    assert min(expected) > 1e-3


def test_neither_batches_nor_chunks_matter(tiny_models, monkeypatch: pytest.MonkeyPatch) -> None:
    policies, _ = tiny_policies(tiny_models("gemma2"))
    prompts, answers = texts(policies.trained.config.vocab_size)
    alone = divergence(Work(), policies, prompts, answers, batch_size=1)["nats"]
    widths: list[int] = []
    policies.trained.register_forward_pre_hook(
        lambda module, args, kwargs: widths.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    assert divergence(Work(), policies, prompts, answers, batch_size=4)["nats"] == pytest.approx(alone, abs=1e-5)
    assert widths == [4, 4]
    monkeypatch.setattr(logits_module, "_LOGIT_BYTES", 1)
    monkeypatch.setattr(logits_module, "_SOFTMAX_BYTES", 1)
    assert divergence(Work(), policies, prompts, answers, batch_size=4)["nats"] == pytest.approx(alone, abs=1e-5)
    assert widths[2:] == [1] * 8


def test_no_logits_for_the_prompts(tiny_models) -> None:
    policies, _ = tiny_policies(tiny_models("llama"))
    shapes: list[tuple[int, ...]] = []
    policies.trained.get_output_embeddings().register_forward_hook(
        lambda module, args, output: shapes.append(tuple(output.shape[:2]))
    )
    divergence(Work(), policies, [[20] * 50, [21] * 48], [[22, 23, 24], [25]], batch_size=2)
    assert shapes == [(2, 6), (2, 6)]  # of 53 positions


def test_an_adapter_that_does_nothing(tiny_models) -> None:
    policies, _ = tiny_policies(tiny_models("gpt2"))
    for name, parameter in policies.trained.named_parameters():
        if "lora_B" in name:
            torch.nn.init.zeros_(parameter)
    result = divergence(Work(), policies, *texts(policies.trained.config.vocab_size), batch_size=2)
    assert result["nats"] == [0.0] * 4


def test_a_model_wholly_trained(tiny_models) -> None:
    policies, _ = tiny_policies(tiny_models("llama"))
    prompts, answers = texts(policies.trained.config.vocab_size)
    expected = divergence(Work(), policies, prompts, answers, batch_size=2)["nats"]
    base = load_model(ModelSection(name=str(tiny_models("llama"))))
    whole = Policies(policies.trained.merge_and_unload(), base)
    assert divergence(Work(), whole, prompts, answers, batch_size=2)["nats"] == pytest.approx(expected, rel=1e-3)


def test_a_model_that_takes_trees(tiny_models) -> None:
    """As the trainer leaves it: with TRL's head and ours in front of the model's forward."""
    policies, _ = tiny_policies(tiny_models("gemma2"))
    prompts, answers = texts(policies.trained.config.vocab_size)
    expected = divergence(Work(), policies, prompts, answers, batch_size=2)["nats"]
    add_fused_lm_head(policies.trained.get_base_model())
    teach_trees(policies.trained.get_base_model())
    assert divergence(Work(), policies, prompts, answers, batch_size=2)["nats"] == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("architecture", ["gpt2", "gemma2"])
def test_half_precision(architecture: str, dtype: str, tiny_models) -> None:
    """Only the model is in half precision: the softmax of its logits is not."""
    policies, _ = tiny_policies(tiny_models(architecture), dtype)
    assert policies.trained.get_output_embeddings().weight.dtype == getattr(torch, dtype)
    prompts, answers = texts(policies.trained.config.vocab_size)
    expected = [one_token_at_a_time(policies, *pair) for pair in zip(prompts, answers, strict=True)]
    result = divergence(Work(), policies, prompts, answers, batch_size=2)
    # Padding changes the last bits of bfloat16 logits, of which there are 8.
    assert result["nats"] == pytest.approx(expected, rel=0.1, abs=0.01)
    with policies.before() as model:
        same = logits_module.scored_logits(model, [logits_module.Completion.of([20], [21, 22])])
    assert same.dtype == getattr(torch, dtype)
    assert divergences(same, same).tolist() == [0.0, 0.0]


def test_without_answers(tiny_models) -> None:
    policies, _ = tiny_policies(tiny_models("llama"))
    with pytest.raises(ValueError, match="without answers"):
        divergence(Work(), policies, [], [], batch_size=2)


def test_wins_by_hand() -> None:
    before, after = [0.0, 1.0, 2.0, 3.0], [0.5, 0.5, 2.1, 3.0]
    assert count_wins(before, after) == {"win": 2, "loss": 1, "tie": 1}
    assert count_wins(before, after, tolerance=0.2) == {"win": 1, "loss": 1, "tie": 2}
    assert count_wins(before, after, tolerance=0.5) == {"win": 0, "loss": 0, "tie": 4}
    with pytest.raises(ValueError):
        count_wins([0.0], [])
