"""The kernels that a GPU chooses get from a whole model what they need: scale, window, softcap, grouped heads."""

from __future__ import annotations

import pytest
import torch

from lora_dpo.tree import choice
from lora_dpo.tree.choice import Call, Kernel
from tests.parity.models import adapted, collated, hard_pairs
from tests.tree.packed import reference

every_mask = pytest.mark.parametrize("architecture", ["gpt2", "llama", "mistral", "gemma2", "gemma3"])


def force(kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> list[Call]:
    """Lets every layer choose one kernel, packed chains by a kernel of the CPU; returns the list of their calls."""
    calls: list[Call] = []
    monkeypatch.setattr(choice, "choose", lambda call: calls.append(call) or kernel)
    monkeypatch.setattr(choice, "flash_kernel", lambda: reference)
    return calls


@every_mask
def test_packed_chains(architecture: str, tiny_models, monkeypatch: pytest.MonkeyPatch) -> None:
    subject, batch = adapted(tiny_models(architecture), architecture), collated(hard_pairs())
    with torch.no_grad():
        plain = subject.score(batch, tree=False).log_probs
    upstream = torch.randn(plain.shape, generator=torch.Generator().manual_seed(0))
    expected = subject.gradients(batch, upstream, tree=False)
    calls = force(Kernel.FLASH, monkeypatch)
    with torch.no_grad():
        assert (subject.score(batch, tree=True).log_probs - plain).abs().max() <= 2e-5
    assert len(calls) == subject.model.config.num_hidden_layers
    for name, value in subject.gradients(batch, upstream, tree=True).items():
        assert (value - expected[name]).abs().max() <= 1e-5 * expected[name].abs().max(), name


@every_mask
@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_flex_attention(architecture: str, tiny_models, monkeypatch: pytest.MonkeyPatch) -> None:
    subject, batch = adapted(tiny_models(architecture), architecture), collated(hard_pairs())
    with torch.no_grad():
        plain = subject.score(batch, tree=False).log_probs
        calls = force(Kernel.FLEX, monkeypatch)
        treed = subject.score(batch, tree=True).log_probs
    assert len(calls) == subject.model.config.num_hidden_layers
    assert (treed - plain).abs().max() <= 2e-5
