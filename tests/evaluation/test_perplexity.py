from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from lora_dpo.data.chat import TurnEncoder
from lora_dpo.errors import UserError
from lora_dpo.evaluation import logits
from lora_dpo.evaluation import perplexity as module
from lora_dpo.evaluation.perplexity import PLAIN_TEXT, perplexity, read_text
from lora_dpo.evaluation.policies import Policies
from lora_dpo.evaluation.work import Work
from lora_dpo.model.base import load_model
from lora_dpo.recipe.schema import ModelSection
from tests.evaluation.models import tiny_policies

TEXT = "The kettle was on before anyone had found the cups. Nobody minded. " * 4


@torch.no_grad()
def one_token_at_a_time(model: torch.nn.Module, encoder: TurnEncoder, text: str, size: int) -> tuple[float, int]:
    """Returns -log p of all predicted tokens in windows of `size`, and their number, one pass a token."""
    start = [encoder.tokenizer.bos_token_id] if encoder.adds_bos else []
    ids = encoder.tokenizer(text, add_special_tokens=False)["input_ids"]
    nats, count = 0.0, 0
    for place in range(0, len(ids), size - len(start)):
        window = start + ids[place : place + size - len(start)]
        for end in range(1, len(window)):
            scores = model(input_ids=torch.tensor([window[:end]])).logits[0, -1].double().log_softmax(-1)
            nats, count = nats - scores[window[end]].item(), count + 1
    return nats, count


@pytest.mark.parametrize("architecture", ["gpt2", "gemma2", "qwen2"])  # without BOS, with BOS, without BOS
def test_equals_one_token_at_a_time(architecture: str, tiny_models, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_WINDOW", 24)
    policies, encoder = tiny_policies(tiny_models(architecture))
    assert encoder.adds_bos == (architecture == "gemma2")
    result = perplexity(Work(), policies, encoder, TEXT, batch_size=3)
    for when, policy in (("before", policies.before), ("after", policies.after)):
        with policy() as model:
            nats, count = one_token_at_a_time(model, encoder, TEXT, 24)
        assert sum(result["tokens"]) == count
        assert sum(result[f"nats_{when}"]) == pytest.approx(nats, rel=1e-5)
        assert result[when] == pytest.approx(math.exp(nats / count), rel=1e-4)
    assert len(result["tokens"]) > 3
    assert result["before"] != pytest.approx(result["after"], rel=0.01)


def test_windows_are_no_longer_than_the_models_positions(tiny_models) -> None:
    policies, encoder = tiny_policies(tiny_models("gpt2"))  # 512 positions, no BOS
    ids = encoder.tokenizer(read_text(PLAIN_TEXT), add_special_tokens=False)["input_ids"]
    result = perplexity(Work(), policies, encoder, read_text(PLAIN_TEXT), batch_size=2)
    assert set(result["tokens"][:-1]) == {511}
    assert sum(result["tokens"]) == len(ids) - len(result["tokens"])


def test_neither_batches_nor_chunks_matter(tiny_models, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_WINDOW", 20)
    policies, encoder = tiny_policies(tiny_models("gemma2"))
    alone = perplexity(Work(), policies, encoder, TEXT, batch_size=1)
    monkeypatch.setattr(logits, "_SOFTMAX_BYTES", 1)
    together = perplexity(Work(), policies, encoder, TEXT, batch_size=8)
    for when in ("nats_before", "nats_after"):
        assert together[when] == pytest.approx(alone[when], rel=1e-5)


def test_a_model_wholly_trained(tiny_models) -> None:
    policies, encoder = tiny_policies(tiny_models("llama"))
    expected = perplexity(Work(), policies, encoder, TEXT, batch_size=2)
    base = load_model(ModelSection(name=str(tiny_models("llama"))))
    result = perplexity(Work(), Policies(policies.trained.merge_and_unload(), base), encoder, TEXT, batch_size=2)
    assert result["before"] == pytest.approx(expected["before"], rel=1e-5)
    assert result["after"] == pytest.approx(expected["after"], rel=1e-4)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision(dtype: str, tiny_models) -> None:
    expected = perplexity(Work(), *tiny_policies(tiny_models("gemma2")), TEXT, batch_size=2)
    result = perplexity(Work(), *tiny_policies(tiny_models("gemma2"), dtype), TEXT, batch_size=2)
    assert result["before"] == pytest.approx(expected["before"], rel=0.02)
    assert result["after"] == pytest.approx(expected["after"], rel=0.1)


def test_the_bundled_text_is_prose() -> None:
    text = read_text(PLAIN_TEXT)
    paragraphs = text.strip().split("\n\n")
    assert len(paragraphs) >= 12
    assert 1500 <= len(text.split()) <= 2500
    assert "�" not in text


def test_text_that_cannot_be_measured(tiny_models, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"The text .*none\.txt cannot be read: No such file"):
        read_text(tmp_path / "none.txt")
    (tmp_path / "latin.txt").write_bytes("Übung".encode("latin-1"))
    with pytest.raises(UserError, match=r"latin\.txt is no UTF-8 text: invalid .* at byte 0"):
        read_text(tmp_path / "latin.txt")
    policies, encoder = tiny_policies(tiny_models("gpt2"))
    for text in ("", "a"):  # a first token that nothing predicts
        with pytest.raises(UserError, match=f"The text has {len(text)} tokens, which is too short"):
            perplexity(Work(), policies, encoder, text, batch_size=2)
