"""Tree scoring equals TRL's padded forward: values, gradients, and what must not leak."""

from __future__ import annotations

import pytest
import torch

from tests.parity.models import ARCHITECTURES, OUTPUTS, adapted, collated, hard_pairs

every_architecture = pytest.mark.parametrize("architecture", ARCHITECTURES)


def relative(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> float:
    assert found.keys() == expected.keys()
    assert all(value.abs().max() > 0 for value in expected.values()), "an adapter without a gradient proves nothing"
    return max(((found[n] - expected[n]).abs().max() / expected[n].abs().max()).item() for n in expected)


@every_architecture
@pytest.mark.parametrize("seed", [0, 1])
def test_log_probs_metrics_and_gradients(architecture: str, seed: int, tiny_models) -> None:
    subject = adapted(tiny_models(architecture), architecture)
    batch = collated(hard_pairs(seed=seed))
    assert batch["tree"].tree.ids.shape[1] < 0.6 * batch["attention_mask"].sum()
    with torch.no_grad():
        plain, treed = subject.score(batch, tree=False), subject.score(batch, tree=True)
    scored = (plain.log_probs != 0).sum(1)
    assert scored.tolist() == batch["completion_mask"].sum(1).tolist()
    assert (treed.log_probs.sum(1) - plain.log_probs.sum(1)).abs().max() <= 1e-4
    for name in OUTPUTS:
        assert torch.allclose(getattr(treed, name).float(), getattr(plain, name).float(), atol=2e-5), name
    upstream = torch.randn(plain.log_probs.shape, generator=torch.Generator().manual_seed(seed))
    found, expected = (subject.gradients(batch, upstream, tree=tree) for tree in (True, False))
    assert relative(found, expected) <= 1e-5


@every_architecture
@pytest.mark.parametrize("mode", ["keep_start", "keep_end"])
def test_what_trl_truncates_is_what_the_tree_holds(architecture: str, mode: str, tiny_models) -> None:
    subject = adapted(tiny_models(architecture), architecture)
    batch = collated(hard_pairs(seed=3), max_length=24, truncation_mode=mode)
    assert batch["input_ids"].shape[1] == 24
    with torch.no_grad():
        plain, treed = subject.score(batch, tree=False), subject.score(batch, tree=True)
    assert (treed.log_probs - plain.log_probs).abs().max() <= 1e-5


@every_architecture
def test_editing_a_rejected_answer_moves_no_chosen_one(architecture: str, tiny_models) -> None:
    subject = adapted(tiny_models(architecture), architecture)
    pairs = hard_pairs(seed=5)
    poisoned = [dict(pair, rejected_ids=[token % 200 + 7 for token in pair["rejected_ids"]]) for pair in pairs]
    with torch.no_grad():
        before, after = (subject.score(collated(version), tree=True).log_probs for version in (pairs, poisoned))
    count = len(pairs)
    width = min(before.shape[1], after.shape[1])
    assert (before[:count].sum(1) - after[:count].sum(1)).abs().max() <= 2e-5
    moved = (before[count:, :width] - after[count:, :width]).abs().amax(1)
    assert (moved > 1e-3).all(), "the poison did nothing"


@pytest.mark.parametrize("architecture", ["llama", "gemma2"])
def test_order_does_not_matter(architecture: str, tiny_models) -> None:
    subject = adapted(tiny_models(architecture), architecture)
    pairs = hard_pairs(seed=2)
    with torch.no_grad():
        forward = subject.score(collated(pairs), tree=True).log_probs.sum(1).reshape(2, -1)
        backward = subject.score(collated(pairs[::-1]), tree=True).log_probs.sum(1).reshape(2, -1)
    assert torch.allclose(forward, backward.flip(1), atol=1e-5)


def test_identical_pairs(tiny_models) -> None:
    """Their margin's gradient is 0, so there is nothing to be relative to: it is compared in absolute terms."""
    subject = adapted(tiny_models("llama"), "llama")
    same = {"prompt_ids": [9, 8, 7], "chosen_ids": [6, 5, 11], "rejected_ids": [6, 5, 11]}
    batch = collated([same, same])
    upstream = torch.ones(4, batch["input_ids"].shape[1] - 1)
    upstream[2:] = -1.0
    found, expected = (subject.gradients(batch, upstream, tree=tree) for tree in (True, False))
    assert max(value.abs().max().item() for value in found.values()) == 0.0
    assert max(value.abs().max().item() for value in expected.values()) <= 1e-4


@pytest.mark.parametrize("architecture", ["gpt2", "llama", "gemma2", "gptj"])
@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing(architecture: str, reentrant: bool, tiny_models) -> None:
    subject = adapted(tiny_models(architecture), architecture)
    batch = collated(hard_pairs())
    upstream = torch.randn(batch["tree"].slots.shape)
    expected = subject.gradients(batch, upstream, tree=True)
    subject.model.enable_input_require_grads()
    subject.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
    subject.model.train()
    found = subject.gradients(batch, upstream, tree=True)
    assert relative(found, expected) <= 1e-6


@pytest.mark.parametrize("architecture", ["gpt2", "llama", "gemma2", "gemma3"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("autocast", [False, True])
def test_low_precision_is_no_further_from_fp32_than_the_plain_path(
    architecture: str, dtype: torch.dtype, autocast: bool, tiny_models
) -> None:
    folder = tiny_models(architecture)
    batch = collated(hard_pairs(seed=4, count=16))
    exact = adapted(folder, architecture)
    upstream = torch.randn(batch["tree"].slots.shape, generator=torch.Generator().manual_seed(0)) / 10
    with torch.no_grad():
        expected = exact.score(batch, tree=False).log_probs
    gradients = exact.gradients(batch, upstream, tree=False)
    subject = exact if autocast else adapted(folder, architecture, dtype=dtype)
    errors = {}
    for tree in (True, False):
        with torch.autocast("cpu", dtype=dtype, enabled=autocast):
            with torch.no_grad():
                found = subject.score(batch, tree=tree).log_probs.float()
            of_adapter = subject.gradients(batch, upstream, tree=tree)
        errors[tree] = (
            (found - expected).abs().mean().item(),
            sum(
                (of_adapter[name].float() - value).norm().item() / value.norm().item()
                for name, value in gradients.items()
            ),
        )
    assert 0 < errors[False][0] < 0.5
    assert errors[True][0] <= 1.15 * errors[False][0]
    assert errors[True][1] <= 1.15 * errors[False][1]
