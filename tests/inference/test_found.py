from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from lora_dpo.errors import UserError
from lora_dpo.evaluation.asked import ask
from lora_dpo.inference.found import find_model
from tests.adapters import record, save_adapter


def test_a_run_is_its_adapter_on_its_base(work: Path) -> None:
    for word, place in (
        ("runs/small", "runs/small/adapter"),
        ("runs/small/adapter", "runs/small/adapter"),
        ("runs/small/checkpoints/step-1", "runs/small/checkpoints/step-1"),
    ):
        found = find_model(word)
        assert (found.name, Path(found.place).resolve(), found.is_adapter) == (word, (work / place).resolve(), True)
        assert found.model.name == str(work / "base")
        assert (found.base, found.four_bit) == (found.model, False)


def test_an_adapter_reads_its_base_as_it_was_for_the_training(work: Path, tmp_path: Path) -> None:
    copy = shutil.copytree("adapter", tmp_path / "copy")
    said = json.loads((copy / "provenance.json").read_text())
    said["recipe"]["model"] |= {"template": "plain", "trust_remote_code": True}
    (copy / "provenance.json").write_text(json.dumps(said))
    found = find_model(str(copy))
    assert (found.model.name, found.model.template) == (str(work / "base"), "plain")
    assert not found.model.trust_remote_code  # nobody's code runs on the word of an adapter
    assert find_model(str(copy), overrides=["model.trust_remote_code=true"]).model.trust_remote_code
    moved = find_model(str(copy), base="merged")
    assert (moved.model.name, moved.model.template) == ("merged", "plain")


def test_a_merged_model_knows_what_it_was(work: Path) -> None:
    found = find_model("merged")
    assert (found.model.name, found.is_adapter) == ("merged", False)
    assert found.base.name == str(work / "base")
    assert find_model("merged", base="other").base.name == "other"
    assert find_model("base").base is None


def test_a_run_on_four_bits(work: Path, tmp_path: Path) -> None:
    run = shutil.copytree("runs/small", tmp_path / "runs" / "four")
    text = (run / "recipe.yaml").read_text()
    (run / "recipe.yaml").write_text(text.replace("method: lora", "method: qlora"))
    assert find_model(str(run)).four_bit


def test_an_adapter_that_was_copied_out_of_a_run_on_four_bits(tiny_models, tmp_path: Path) -> None:
    base = tiny_models("llama")
    adapter = save_adapter(base, tmp_path / "adapter")
    record(base, adapter)
    assert not find_model(str(adapter)).four_bit
    record(base, adapter, quantization={"bits": 4, "dtype": "bfloat16"})
    assert find_model(str(adapter)).four_bit
    assert ask(str(adapter), data="bundled/misconceptions").recipe.adapter.method == "qlora"


def test_how_it_is_loaded_may_be_set_and_nothing_else(work: Path) -> None:
    found = find_model("runs/small", overrides=["model.dtype=bfloat16", "model.template=plain"])
    assert (found.model.dtype, found.model.template) == ("bfloat16", "plain")
    with pytest.raises(UserError, match=r"^train\.epochs has no meaning where nothing is trained"):
        find_model("base", overrides=["train.epochs=2"])
    with pytest.raises(UserError, match=r"Did you mean 'bfloat16'"):
        find_model("base", overrides=["model.dtype=bfloat"])


def test_what_is_not_there(work: Path) -> None:
    with pytest.raises(UserError, match=r"^There is no run, adapter or model at runs/smal\.\nDid you mean"):
        find_model("runs/smal")
