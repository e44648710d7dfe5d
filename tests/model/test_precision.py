from __future__ import annotations

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from lora_dpo.errors import UserError
from lora_dpo.model.base import load_model
from lora_dpo.model.precision import choose_attention, choose_dtype
from lora_dpo.recipe.schema import ModelSection

IDS = torch.arange(20, 60)[None]  # longer than the window of 16


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what a CPU gets")
def test_auto_is_float32_on_a_cpu() -> None:
    assert choose_dtype("auto") is torch.float32


@pytest.mark.parametrize("name", ["float32", "bfloat16", "float16"])
def test_named_precisions(name: str) -> None:
    assert str(choose_dtype(name)) == f"torch.{name}"


def config_of(tiny_models, architecture: str):
    return AutoConfig.from_pretrained(tiny_models(architecture))


def test_auto_leaves_models_without_softcap_to_the_library(tiny_models) -> None:
    section = ModelSection(name="m")
    for architecture in ("gpt2", "llama", "qwen3"):
        assert choose_attention(section, config_of(tiny_models, architecture), torch.float32) is None


def test_auto_is_eager_for_gemma2(tiny_models) -> None:
    assert choose_attention(ModelSection(name="m"), config_of(tiny_models, "gemma2"), torch.float32) == "eager"


def test_sdpa_is_refused_for_gemma2_only(tiny_models) -> None:
    section = ModelSection(name="m", attention="sdpa")
    with pytest.raises(UserError, match=r"would drop the attention softcap \(50\) of gemma2"):
        choose_attention(section, config_of(tiny_models, "gemma2"), torch.float32)
    assert choose_attention(section, config_of(tiny_models, "llama"), torch.float32) == "sdpa"


def test_a_softcap_that_is_switched_off_needs_no_eager(tiny_models) -> None:
    config = config_of(tiny_models, "gemma2")
    config.attn_logit_softcapping = None
    assert choose_attention(ModelSection(name="m"), config, torch.float32) is None


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what a CPU gets")
def test_flash_attention_without_a_gpu(tiny_models) -> None:
    section = ModelSection(name="m", attention="flash_attention_2")
    with pytest.raises(UserError, match=r"flash-attn is not installed or there is no GPU"):
        choose_attention(section, config_of(tiny_models, "llama"), torch.float32)


@torch.no_grad()
def logits(model: torch.nn.Module) -> torch.Tensor:
    return model.eval()(input_ids=IDS).logits


def loud(model: torch.nn.Module) -> torch.nn.Module:
    """Makes the weights so large that a softcap bites."""
    torch.manual_seed(0)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.6)
    return model


def test_loaded_gemma2_has_its_softcaps_and_its_window(tiny_models) -> None:
    folder = tiny_models("gemma2")
    ours = load_model(ModelSection(name=str(folder)))
    assert ours.config._attn_implementation == "eager"
    expected = logits(loud(AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager")))
    torch.testing.assert_close(logits(loud(ours)), expected, atol=0, rtol=0)
    for change in ({"attn_logit_softcapping": None}, {"final_logit_softcapping": None}, {"sliding_window": 4096}):
        config = AutoConfig.from_pretrained(folder)
        for key, value in change.items():
            setattr(config, key, value)
        other = AutoModelForCausalLM.from_pretrained(folder, config=config, attn_implementation="eager")
        assert (logits(loud(other)) - expected).abs().max() > 1e-2, change


def test_asked_for_attention_is_used(tiny_models) -> None:
    for attention in ("eager", "sdpa"):
        model = load_model(ModelSection(name=str(tiny_models("llama")), attention=attention))
        assert model.config._attn_implementation == attention
