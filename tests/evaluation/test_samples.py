from __future__ import annotations

import pytest

from lora_dpo.data.chat import TurnEncoder
from lora_dpo.evaluation.answers import compare_answers
from lora_dpo.evaluation.policies import Policies
from lora_dpo.evaluation.samples import draw_samples
from lora_dpo.evaluation.work import Work
from tests.evaluation.models import tiny_policies
from tests.small import preferences


@pytest.fixture
def policies_and_encoder(tiny_models) -> tuple[Policies, TurnEncoder]:
    return tiny_policies(tiny_models("llama"))


def test_questions_are_asked_once_before_and_after(policies_and_encoder) -> None:
    policies, encoder = policies_and_encoder
    pairs = preferences(3)
    encoded = list(encoder.encode([pairs[0], *pairs]))  # a question of two pairs
    samples = draw_samples(Work(), policies, encoder, encoded, count=2, max_new_tokens=6, batch_size=8)
    assert [sample["prompt"] for sample in samples] == [pair.prompt[-1]["content"] for pair in pairs[:2]]
    assert [sample["chosen"] for sample in samples] == [pair.chosen for pair in pairs[:2]]
    prompts = [encoder.prompt_ids(pair.prompt) for pair in pairs[:2]]
    expected = compare_answers(Work(), policies, encoder, prompts, max_new_tokens=6, batch_size=1)
    for when in ("before", "after"):
        assert [sample[when] for sample in samples] == [answer["text"] for answer in expected[when]]
    assert expected["before"] != expected["after"]


def test_no_questions_no_samples(policies_and_encoder) -> None:
    policies, encoder = policies_and_encoder
    encoded = list(encoder.encode(preferences(2)))
    assert draw_samples(Work(), policies, encoder, encoded, count=0, max_new_tokens=4, batch_size=2) == []
    assert draw_samples(Work(), policies, encoder, [], count=2, max_new_tokens=4, batch_size=2) == []
