from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from lora_dpo.errors import UserError
from lora_dpo.merging.sources import Source, check_stack, find_sources
from lora_dpo.model.hashes import config_hash, weights_hash
from lora_dpo.model.record import read_record
from lora_dpo.recipe.run_folder import RunFolder
from tests.adapters import known, record, save_adapter, spoil
from tests.small import small_recipe


@pytest.fixture
def run(tiny_models, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunFolder:
    """A run that went through, with an adapter and a checkpoint; tests are in the folder above it."""
    monkeypatch.chdir(tmp_path)
    recipe = small_recipe(tiny_models("llama"), tmp_path / "runs")
    run = RunFolder.of(recipe)
    run.create(recipe, overwrite=False).release()
    record(tiny_models("llama"), save_adapter(tiny_models("llama"), run.adapter))
    shutil.copytree(run.adapter, run.checkpoints / "step-1")
    run.report_json.write_text("{}")
    return run


def test_a_run_its_adapter_and_its_checkpoint(run: RunFolder) -> None:
    for word, folder in (
        ("runs/small", run.adapter),
        ("runs/small/adapter", run.adapter),
        ("runs/small/checkpoints/step-1", run.checkpoints / "step-1"),
    ):
        (source,), base = find_sources([word], None)
        assert source.folder.resolve() == folder.resolve()
        assert (source.name, source.run.path.resolve()) == (word, run.path.resolve())
        assert base == run.load_recipe().model


def test_an_adapter_elsewhere_says_what_its_base_was(run: RunFolder, tmp_path: Path) -> None:
    config = json.loads((run.adapter / "adapter_config.json").read_text())
    (run.adapter / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": "/not/here"}))
    shutil.copytree(run.adapter, "copy")
    (source,), base = find_sources(["copy"], None)
    assert (source.run, base.name) == (None, run.load_recipe().model.name)
    assert source.as_json() == {
        "name": "copy",
        "weights_sha256": weights_hash("copy", None),
        "config_sha256": config_hash(Path("copy")),
        "provenance": read_record("copy"),
    }
    assert find_sources(["copy"], "org/other")[1].name == "org/other"
    Path("copy/provenance.json").unlink()
    with pytest.raises(UserError, match="The base of copy is not here"):
        find_sources(["copy"], None)


def test_what_holds_no_adapter(run: RunFolder, tiny_models) -> None:
    with pytest.raises(UserError, match="is a whole model, so there is nothing to merge"):
        find_sources([str(tiny_models("llama"))], None)
    with pytest.raises(UserError, match="runs/smal") as caught:
        find_sources(["runs/smal"], None)
    assert "Did you mean 'runs/small'?" in caught.value.fix


def test_how_the_base_is_loaded_can_be_said(run: RunFolder) -> None:
    shutil.copytree(run.adapter, "copy")
    assert not find_sources(["copy"], None)[1].trust_remote_code
    assert find_sources(["copy"], None, ["model.trust_remote_code=true"])[1].trust_remote_code
    with pytest.raises(UserError, match=r"Did you mean 'model.trust_remote_code'"):
        find_sources(["copy"], None, ["model.trust_remot_code=true"])
    with pytest.raises(UserError, match=r"^model\.dtype has no meaning where nothing is trained"):
        find_sources(["copy"], None, ["model.dtype=bfloat16"])


def stack(base: Path, *names: str) -> list[Source]:
    sources = find_sources(names, str(base))[0]
    check_stack(sources, known(base))
    return sources


def test_an_adapter_in_which_the_other_is_already(run: RunFolder, tiny_models) -> None:
    base = tiny_models("llama")
    parent = {"name": "runs/small", "weights_sha256": weights_hash(str(run.adapter), None), "provenance": None}
    record(base, save_adapter(base, Path("next"), seed=2), parents=[parent])
    with pytest.raises(UserError, match="runs/small is in next already, which goes on from it") as caught:
        stack(base, "runs/small", "next")
    assert caught.value.fix == "Give next alone."
    next_one = {"name": "next", "weights_sha256": weights_hash("next", None), "provenance": read_record("next")}
    record(base, save_adapter(base, Path("last"), seed=3), parents=[next_one])
    with pytest.raises(UserError, match="runs/small is in last already"):
        stack(base, "runs/small", "last")
    with pytest.raises(UserError, match="runs/small is given twice"):
        stack(base, "runs/small", "runs/small")
    assert len(stack(base, "last")) == 1


def test_adapters_that_were_not_trained_one_upon_the_other(run: RunFolder, tiny_models, capsys) -> None:
    base = tiny_models("llama")
    record(base, save_adapter(base, Path("other"), seed=2))
    stack(base, "runs/small", "other")
    assert "together they make a model that nobody has trained" in " ".join(capsys.readouterr().err.split())


def test_an_adapter_of_another_base(run: RunFolder, tiny_models) -> None:
    with pytest.raises(UserError, match=r"is another model than the one that runs/small was trained on"):
        stack(tiny_models("gpt2"), "runs/small")


def test_an_adapter_that_has_changed(run: RunFolder, tiny_models) -> None:
    spoil(run.adapter / "adapter_model.safetensors")
    with pytest.raises(UserError, match="The weights in runs/small are not those that were saved there"):
        stack(tiny_models("llama"), "runs/small")


def test_an_adapter_without_a_record_is_taken_on_trust(run: RunFolder, tiny_models, capsys) -> None:
    (run.adapter / "provenance.json").unlink()
    stack(tiny_models("llama"), "runs/small")
    assert "runs/small has no provenance.json here, so that its base is taken on trust." in capsys.readouterr().err
