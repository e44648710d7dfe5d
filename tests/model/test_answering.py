from __future__ import annotations

import pytest
import torch

from lora_dpo.model.answering import Noise, padded


def test_sampling_has_the_models_distribution() -> None:
    # log p + constant; 4000 draws: standard error of a share is at most 0.008.
    shares = torch.tensor([0.5, 0.3, 0.15, 0.05])
    scores = (shares.log() + 3.0).expand(4000, -1)
    prompts = [[number] for number in range(4000)]
    drawn = Noise(0, prompts)(torch.empty(0), scores).argmax(1)
    assert (drawn.bincount(minlength=4) / 4000).tolist() == pytest.approx(shares.tolist(), abs=0.03)
    again, other = Noise(0, prompts)(torch.empty(0), scores), Noise(1, prompts)(torch.empty(0), scores)
    assert again.argmax(1).equal(drawn)
    assert 0.3 < (other.argmax(1) == drawn).float().mean() < 0.45  # by chance 0.25 + 0.09 + 0.0225 + 0.0025 = 0.365


def test_prompts_are_padded_on_the_left() -> None:
    ids, present = padded([[5, 6, 7], [8]], 0)
    assert ids.tolist() == [[5, 6, 7], [0, 0, 8]]
    assert present.tolist() == [[1, 1, 1], [0, 0, 1]]
