from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from lora_dpo.errors import UserError
from lora_dpo.model.shards import float_dtypes, read, rewrite, rewritten_bytes

TENSORS = {
    "b.weight": torch.arange(6, dtype=torch.float32).reshape(2, 3),
    "a.weight": torch.tensor([1.0, 1.0 + 2**-9], dtype=torch.bfloat16),
    "steps": torch.tensor(7),
    "mask": torch.tensor([True, False, True]),
    "none": torch.zeros(0, 4),
}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    save_file(TENSORS, tmp_path / "source.safetensors", metadata={"format": "pt", "by": "hand"})
    return tmp_path / "source.safetensors"


def unchanged(name: str, tensor: torch.Tensor) -> torch.Tensor:
    return tensor


def test_a_file_written_again_is_the_same_file(source: Path, tiny_models, tmp_path: Path) -> None:
    for number, file in enumerate([source, tiny_models("gpt2") / "model.safetensors"]):
        target = tmp_path / f"{number}.safetensors"
        written = rewrite(file, target, unchanged)
        assert target.read_bytes() == file.read_bytes()
        assert written.sha256 == hashlib.sha256(file.read_bytes()).hexdigest()
        assert written.tensor_bytes == rewritten_bytes(file, None)
        assert set(written.names) == set(load_file(file))


def test_only_what_is_changed_changes(source: Path, tmp_path: Path) -> None:
    target = tmp_path / "target.safetensors"
    rewrite(source, target, lambda name, tensor: tensor * 2 if name == "b.weight" else tensor)
    found = load_file(target)
    assert torch.equal(found.pop("b.weight"), TENSORS["b.weight"] * 2)
    assert all(torch.equal(found[name], TENSORS[name]) and found[name].dtype == TENSORS[name].dtype for name in found)
    with safe_open(target, "pt") as tensors:
        assert tensors.metadata() == {"format": "pt", "by": "hand"}


def test_a_precision_is_for_numbers_with_a_point_alone(source: Path, tmp_path: Path) -> None:
    target = tmp_path / "target.safetensors"
    written = rewrite(source, target, unchanged, torch.float16)
    found = load_file(target)
    expected = {name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in TENSORS.items()}
    assert {name: tensor.dtype for name, tensor in found.items()} == {
        name: tensor.dtype for name, tensor in expected.items()
    }
    assert all(torch.equal(found[name], expected[name]) for name in found)
    assert written.tensor_bytes == rewritten_bytes(source, torch.float16) == 6 * 2 + 2 * 2 + 8 + 3


def test_a_value_is_rounded_once(source: Path, tmp_path: Path) -> None:
    """1 + 2**-8 + 2**-9 is above the middle of two bfloat16 numbers; rounded to float16 before, it would be on it."""
    value = 1.0 + 2**-8 + 2**-20
    target = tmp_path / "target.safetensors"
    rewrite(source, target, lambda name, t: torch.full_like(t, value, dtype=torch.float32) if "a." in name else t)
    assert read(target, "a.weight").tolist() == [1.0078125, 1.0078125]


def test_precisions_of_a_file(source: Path) -> None:
    assert float_dtypes(source) == {"b.weight": torch.float32, "a.weight": torch.bfloat16, "none": torch.float32}


@pytest.mark.parametrize(
    "content", [b"", b"\x08\0\0\0\0\0\0\0{", b"\xff" * 16, None], ids=["empty", "cut", "odd", "none"]
)
def test_a_file_that_cannot_be_read(content: bytes | None, tmp_path: Path) -> None:
    file = tmp_path / "model-00001-of-00002.safetensors"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(
        UserError, match="The file is damaged" if content is not None else "has no model-00001"
    ) as caught:
        rewritten_bytes(file, None)
    assert caught.value.where == str(file)
