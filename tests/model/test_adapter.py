from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from peft import PeftModel, get_peft_model
from transformers import AutoModelForCausalLM
from transformers.pytorch_utils import Conv1D

from lora_dpo.errors import UserError
from lora_dpo.model.adapter import continue_adapter, linear_layers, load_adapter, lora_config
from lora_dpo.model.base import load_model
from lora_dpo.recipe.schema import AdapterSection, ModelSection
from tests.tiny import ARCHITECTURES

ALL_LINEAR = {
    "gpt2": {"attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"},
    "gptj": {"attn.q_proj", "attn.k_proj", "attn.v_proj", "attn.out_proj", "mlp.fc_in", "mlp.fc_out"},
}
LLAMA_LIKE = {
    *(f"self_attn.{name}_proj" for name in "qkvo"),
    *(f"mlp.{name}_proj" for name in ("gate", "up", "down")),
}


@pytest.fixture
def base_of(tiny_models):
    return lambda architecture: load_model(ModelSection(name=str(tiny_models(architecture))))


def adapted(model: PeftModel) -> set[str]:
    """Returns the adapted layers of the first block, as `attn.c_attn`."""
    names = {name.split(".lora_A")[0] for name, _ in model.named_parameters() if "lora_A" in name}
    return {".".join(name.split(".")[-2:]) for name in names}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_all_linear_is_every_layer_but_the_head(architecture: str, base_of) -> None:
    base = base_of(architecture)
    expected = ALL_LINEAR.get(architecture, LLAMA_LIKE)
    layers = linear_layers(base)
    assert {".".join(name.split(".")[-2:]) for name in layers} == expected
    assert len(layers) == 2 * len(expected)  # two blocks
    model = get_peft_model(base, lora_config(AdapterSection(r=3, alpha=5), base))
    assert adapted(model) == expected
    assert model.get_output_embeddings() is base.get_output_embeddings()
    ranks = {parameter.size(0) for name, parameter in model.named_parameters() if "lora_A" in name}
    assert ranks == {3}


def test_gpt2_s_conv1d_is_told_from_a_linear_layer(base_of) -> None:
    gpt2 = base_of("gpt2")
    assert all(isinstance(layer, Conv1D) for layer in linear_layers(gpt2).values())
    assert lora_config(AdapterSection(), gpt2).fan_in_fan_out
    assert not lora_config(AdapterSection(), base_of("gptj")).fan_in_fan_out


def test_c_attn_and_c_proj(base_of) -> None:
    base = base_of("gpt2")
    model = get_peft_model(base, lora_config(AdapterSection(targets=["c_attn", "c_proj"]), base))
    assert adapted(model) == {"attn.c_attn", "attn.c_proj", "mlp.c_proj"}


@pytest.mark.parametrize(
    ("architecture", "layers"),
    [("gpt2", {"attn.c_attn", "attn.c_proj", "mlp.c_proj"}), ("gptj", {"attn.q_proj", "attn.v_proj", "mlp.fc_out"})],
)
def test_of_alternative_names_those_the_model_has(architecture: str, layers: set[str], base_of) -> None:
    base = base_of(architecture)
    config = lora_config(AdapterSection(targets=["c_attn|q_proj|v_proj", "c_proj|fc_out"]), base)
    assert adapted(get_peft_model(base, config)) == layers


def test_longer_names_tell_layers_apart(base_of) -> None:
    base = base_of("gpt2")
    model = get_peft_model(base, lora_config(AdapterSection(targets=["attn.c_proj"]), base))
    assert adapted(model) == {"attn.c_proj"}


def test_keys_reach_peft(base_of) -> None:
    section = AdapterSection(r=8, alpha=12, dropout=0.25, rslora=True, dora=True, targets=["q_proj"])
    config = lora_config(section, base_of("llama"))
    assert (config.r, config.lora_alpha, config.lora_dropout) == (8, 12, 0.25)
    assert (config.use_rslora, config.use_dora, config.target_modules) == (True, True, {"q_proj"})


@pytest.mark.parametrize(
    ("architecture", "target", "hint"),
    [
        ("gpt2", "c_atn", "Did you mean 'c_attn'"),
        ("llama", "c_attn", "There are: down_proj, gate_proj, k_proj, o_proj, q_proj, up_proj, v_proj"),
        ("llama", "proj", "which matches no linear layer"),
        ("llama", "c_attn|c_proj", "which matches no linear layer"),
        ("llama", "embed_tokens", "which matches no linear layer"),
    ],
)
def test_target_that_matches_nothing(architecture: str, target: str, hint: str, base_of) -> None:
    with pytest.raises(UserError, match=hint) as caught:
        lora_config(AdapterSection(targets=[target]), base_of(architecture))
    assert f"'{target}'" in caught.value.what


@pytest.mark.parametrize("architecture", ["gpt2", "llama", "gemma2"])
@pytest.mark.parametrize("target", ["lm_head", "model.lm_head", "c_attn|lm_head"])
def test_the_head_is_refused(architecture: str, target: str, base_of) -> None:
    with pytest.raises(UserError, match="the output head"):
        lora_config(AdapterSection(targets=[target]), base_of(architecture))


@pytest.fixture
def saved_adapter(base_of, tmp_path: Path) -> tuple[Path, dict[str, torch.Tensor]]:
    """A Llama adapter with values of its own, in a folder."""
    base = base_of("llama")
    torch.manual_seed(7)
    model = get_peft_model(base, lora_config(AdapterSection(r=3, alpha=6, dropout=0.1), base))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    model.save_pretrained(tmp_path / "saved")
    values = {name: p.detach().clone() for name, p in model.named_parameters() if "lora_" in name}
    return tmp_path / "saved", values


def assert_continues(model: PeftModel, values: dict[str, torch.Tensor]) -> None:
    own = {name: parameter for name, parameter in model.named_parameters() if "lora_" in name}
    assert own.keys() == values.keys()
    assert all(torch.equal(own[name], value) for name, value in values.items())
    assert all(parameter.requires_grad for parameter in own.values())
    assert not any(p.requires_grad for name, p in model.named_parameters() if "lora_" not in name)


def test_continued_adapter_keeps_its_values(saved_adapter, base_of, capsys) -> None:
    folder, values = saved_adapter
    section = AdapterSection(init_from=str(folder), r=16, alpha=32)
    assert_continues(continue_adapter(section, base_of("llama")), values)
    message = " ".join(capsys.readouterr().err.split())
    assert "its own r 3 and alpha 6 hold, not the recipe's r 16 and alpha 32" in message


def test_nothing_is_said_where_the_recipe_agrees(saved_adapter, base_of, capsys) -> None:
    continue_adapter(AdapterSection(init_from=str(saved_adapter[0]), r=3, alpha=6), base_of("llama"))
    assert "hold" not in capsys.readouterr().err


def test_continued_from_a_run_folder(saved_adapter, base_of, tmp_path: Path) -> None:
    folder, values = saved_adapter
    shutil.copytree(folder, tmp_path / "runs" / "first" / "adapter")
    section = AdapterSection(init_from=str(tmp_path / "runs" / "first"), r=3, alpha=6)
    assert_continues(continue_adapter(section, base_of("llama")), values)


@pytest.mark.parametrize("architecture", ["gpt2", "gptj"])
def test_adapter_of_another_model_is_refused(architecture: str, saved_adapter, base_of) -> None:
    with pytest.raises(
        UserError, match=r"cannot be put on this model[\s\S]*base model that the adapter was trained on"
    ):
        continue_adapter(AdapterSection(init_from=str(saved_adapter[0])), base_of(architecture))


@pytest.mark.parametrize("layers", [1, 3])
def test_adapter_that_fits_only_in_part_is_refused(layers: int, base_of, tmp_path: Path) -> None:
    """PEFT itself would go on without the rest, or with parts that were never trained."""
    base = base_of("llama")
    get_peft_model(base, lora_config(AdapterSection(targets=["q_proj", "v_proj"]), base)).save_pretrained(tmp_path)
    config = base.config
    config.num_hidden_layers = layers
    other = AutoModelForCausalLM.from_config(config)
    with pytest.raises(UserError, match=r"cannot be put on this model: 4 tensors have no counterpart, such as base_m"):
        load_adapter(str(tmp_path), other)


def test_adapter_that_is_only_measured_is_not_trainable(saved_adapter, base_of) -> None:
    loaded = load_adapter(str(saved_adapter[0]), base_of("llama"))
    assert not any(parameter.requires_grad for parameter in loaded.parameters())


def test_folder_without_an_adapter(base_of, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"holds no adapter[\s\S]*adapter_config\.json"):
        continue_adapter(AdapterSection(init_from=str(tmp_path)), base_of("llama"))


def test_damaged_adapter(saved_adapter, base_of) -> None:
    folder, _ = saved_adapter
    weights = folder / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:40])  # what trl#4416 leaves behind
    with pytest.raises(UserError, match="cannot be put on this model"):
        continue_adapter(AdapterSection(init_from=str(folder)), base_of("llama"))


def test_adapter_that_is_nowhere(base_of) -> None:
    with pytest.raises(UserError, match="no-such-org/no-such-adapter"):
        continue_adapter(AdapterSection(init_from="no-such-org/no-such-adapter"), base_of("llama"))
