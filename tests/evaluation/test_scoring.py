from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
import torch
from trl.trainer.utils import add_fused_lm_head

from lora_dpo.evaluation import scoring
from lora_dpo.evaluation.scoring import score, score_both
from lora_dpo.evaluation.work import Work
from lora_dpo.model.base import load_model
from lora_dpo.recipe.schema import ModelSection
from lora_dpo.tree.hf import teach_trees
from tests.evaluation.models import tiny_policies
from tests.tiny import ARCHITECTURES

LENGTHS = [(3, 2), (1, 1), (20, 9), (7, 30), (12, 1), (2, 5)]  # prompt and completion; some past Gemma-2's window of 16


def sequences(vocabulary: int) -> list[tuple[list[int], list[int]]]:
    draw = random.Random(0)
    return [
        ([draw.randrange(10, vocabulary) for _ in range(p)], [draw.randrange(10, vocabulary) for _ in range(c)])
        for p, c in LENGTHS
    ]


@torch.no_grad()
def one_token_at_a_time(model: torch.nn.Module, prompt: list[int], completion: list[int]) -> float:
    """Sums log p(token | all before it), from one unpadded forward pass a token."""
    total = 0.0
    seen = list(prompt)
    for token in completion:
        logits = model(input_ids=torch.tensor([seen])).logits[0, -1].double()
        total += (logits[token] - torch.logsumexp(logits, dim=0)).item()
        seen.append(token)
    return total


@pytest.fixture
def model_of(tiny_models):
    def load(architecture: str) -> torch.nn.Module:
        return load_model(ModelSection(name=str(tiny_models(architecture)))).eval()

    return load


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@torch.no_grad()
def test_equals_one_token_at_a_time(architecture: str, model_of) -> None:
    model = model_of(architecture)
    given = sequences(model.config.vocab_size)
    expected = [one_token_at_a_time(model, *sequence) for sequence in given]
    scores = score(model, given, 4)
    assert scores.dtype == torch.float64
    assert scores.shape == (len(given),)
    assert scores.tolist() == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@torch.no_grad()
def test_over_trees(architecture: str, model_of, monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of(architecture)
    shared = sequences(model.config.vocab_size)
    given = [(prompt, completion) for prompt, _ in shared for _, completion in shared[:3]]
    expected = [one_token_at_a_time(model, *sequence) for sequence in given]
    add_fused_lm_head(model)
    teach_trees(model)
    nodes: list[int] = []
    model.get_input_embeddings().register_forward_hook(lambda module, args, output: nodes.append(args[0].numel()))
    assert score(model, given, 4).tolist() == pytest.approx(expected, abs=1e-4)
    assert len(nodes) == 1
    monkeypatch.setattr(scoring, "TREE_TOKENS", 60)
    del nodes[:]
    assert score(model, given, 4).tolist() == pytest.approx(expected, abs=1e-4)
    assert len(nodes) >= 3
    if architecture != "gptj":  # padded to rows
        assert max(nodes) <= 60


@pytest.mark.parametrize("architecture", ["gpt2", "gemma2"])
@torch.no_grad()
def test_neither_order_nor_batch_size_nor_padding_matters(architecture: str, model_of) -> None:
    model = model_of(architecture)
    given = sequences(model.config.vocab_size)
    alone = score(model, given, 1)
    assert len({round(value, 3) for value in alone.tolist()}) == len(given)
    for batch_size in (2, 3, 6, 100):
        torch.testing.assert_close(score(model, given, batch_size), alone, atol=1e-4, rtol=0)
    backwards = score(model, given[::-1], 3)
    torch.testing.assert_close(backwards.flip(0), alone, atol=1e-4, rtol=0)


@torch.no_grad()
def test_logits_are_bounded_by_smaller_batches(model_of, monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of("llama")
    given = sequences(model.config.vocab_size)
    widths: list[tuple[int, int]] = []
    hook = model.register_forward_pre_hook(
        lambda module, args, kwargs: widths.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    expected = score(model, given, 6)
    assert widths == [(6, 37)]
    widths.clear()
    # Room for three of the longest sequence's logits (37 tokens): 3 * 37 * 4 bytes * vocabulary.
    monkeypatch.setattr(scoring, "_LOGIT_BYTES", 3 * 37 * 4 * model.config.vocab_size)
    bounded = score(model, given, 6)
    hook.remove()
    assert widths == [(3, 37), (3, 7)]  # lengths 37, 29, 13 and then 7, 5, 2
    torch.testing.assert_close(bounded, expected, atol=1e-4, rtol=0)


@torch.no_grad()
def test_one_sequence_larger_than_the_bound_is_still_scored(model_of, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scoring, "_LOGIT_BYTES", 1)
    model = model_of("llama")
    given = sequences(model.config.vocab_size)[:2]
    expected = [one_token_at_a_time(model, *sequence) for sequence in given]
    assert score(model, given, 8).tolist() == pytest.approx(expected, abs=1e-4)


def test_a_sequence_of_two_questions_is_scored_once_before_and_once_after(tiny_models, tmp_path: Path) -> None:
    policies, _ = tiny_policies(tiny_models("llama"))
    one, two, three = sequences(50)[:3]
    found = score_both(Work(tmp_path), policies, [[one, two, one], [two, three], [two]], batch_size=8)
    before, after = found.of([three, one, two])
    assert before != after
    for policy, values in ((policies.before, before), (policies.after, after)):
        with policy() as model:
            assert values == pytest.approx([one_token_at_a_time(model, *each) for each in (three, one, two)], abs=1e-4)
    for when in ("before", "after"):
        lines = (tmp_path / f"scoring-answers-{when}.0.jsonl").read_text().strip().split("\n")
        assert sorted(len(json.loads(line)[1]) for line in lines) == [1, 2]  # scores of the first two questions
