from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from lora_dpo.model.base import load_tokenizer
from lora_dpo.training.saving import Measure, check_saved, measure, save_policy
from tests.small import small_recipe, small_trainer

ADAPTER = "adapter_model.safetensors"


def saved(architecture: str, tiny_models, folder: Path, **sections):
    """Returns a trainer after two steps, and where its policy was saved."""
    recipe = small_recipe(tiny_models(architecture), folder, train={"max_steps": 2}, **sections)
    trainer = small_trainer(recipe)
    trainer.train()
    save_policy(trainer, folder / "saved", load_tokenizer(recipe.model))
    return trainer, folder / "saved"


@pytest.mark.parametrize("adapter", [{}, {"dora": True}], ids=["lora", "dora"])
def test_the_measure_is_that_of_the_file(adapter: dict, tiny_models, tmp_path: Path) -> None:
    trainer, folder = saved("llama", tiny_models, tmp_path, adapter={"r": 4, "alpha": 8, **adapter})
    file = load_file(folder / ADAPTER)
    found = measure(trainer.model)
    assert found.keys() == file.keys()
    for name, tensor in file.items():
        assert found[name].shape == tuple(tensor.shape)
        assert found[name].norm == pytest.approx(tensor.double().norm().item(), rel=1e-9)
    assert (folder / "tokenizer.json").is_file()


def test_of_a_continued_adapter_the_frozen_copy_is_left_out(tiny_models, tmp_path: Path) -> None:
    _, first = saved("llama", tiny_models, tmp_path / "first")
    trainer, second = saved("llama", tiny_models, tmp_path / "second", adapter={"init_from": str(first)})
    assert "ref" in trainer.model.peft_config
    assert load_file(first / ADAPTER).keys() == load_file(second / ADAPTER).keys()
    assert not (second / "ref").exists()


@pytest.mark.parametrize("architecture", ["gemma2", "gpt2", "llama"])  # the first two with a tied head
def test_a_whole_model(architecture: str, tiny_models, tmp_path: Path) -> None:
    trainer, folder = saved(architecture, tiny_models, tmp_path, adapter={"method": "full"})
    file = load_file(folder / "model.safetensors")
    assert sum(tensor.numel() for tensor in file.values()) == trainer.model.num_parameters()
    assert measure(trainer.model).keys() >= file.keys()


def spoil(folder: Path, change) -> None:
    tensors = load_file(folder / ADAPTER)
    name = min(tensors)
    change(tensors, name)
    save_file(tensors, folder / ADAPTER)


def zero(tensors: dict[str, torch.Tensor], name: str) -> None:
    tensors[name] = torch.zeros_like(tensors[name])


def piece(tensors: dict[str, torch.Tensor], name: str) -> None:
    tensors[name] = tensors[name].flatten()[:7]


def none_left(tensors: dict[str, torch.Tensor], name: str) -> None:
    tensors.clear()


def one_lost(tensors: dict[str, torch.Tensor], name: str) -> None:
    del tensors[name]


def one_too_many(tensors: dict[str, torch.Tensor], name: str) -> None:
    tensors["base_model.model.other.lora_A.weight"] = torch.ones(2)


def not_a_number(tensors: dict[str, torch.Tensor], name: str) -> None:
    tensors[name] = tensors[name] * float("nan")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (none_left, r"of 28 tensors 28 differ\.\n.* is missing"),
        (one_lost, r"1 differ\.\nbase_model\.\S+ is missing$"),
        (piece, r"1 differ\.\nbase_model\S+ is \[7\] with norm \S+, not \[4, 64\] with norm"),
        (zero, r"1 differ\.\nbase_model\S+ is \[4, 64\] with norm 0, not \[4, 64\]"),
        (not_a_number, "is .4, 64. with norm nan"),
        (one_too_many, r"other\.lora_A\.weight does not belong there"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_what_is_not_whole_is_named(change, message: str, tiny_models, tmp_path: Path) -> None:
    trainer, folder = saved("llama", tiny_models, tmp_path)
    expected = measure(trainer.model)
    check_saved(folder, expected)
    spoil(folder, change)
    with pytest.raises(RuntimeError, match=message):
        check_saved(folder, expected)


def test_a_name_that_transformers_changed_is_compared_in_sum(tmp_path: Path) -> None:
    tensors = {"gate": torch.tensor([3.0, 4.0]), "up": torch.tensor([12.0, 0.0])}
    save_file({"gate_up": torch.cat(list(tensors.values()))}, tmp_path / "model.safetensors")
    expected = {name: Measure((2,), tensor.norm().item()) for name, tensor in tensors.items()}
    check_saved(tmp_path, expected)
    with pytest.raises(RuntimeError, match="does not hold what was trained"):
        check_saved(tmp_path, {**expected, "up": Measure((2,), 11.0)})
