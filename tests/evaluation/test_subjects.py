from __future__ import annotations

from pathlib import Path

import pytest

from lora_dpo.errors import UserError
from lora_dpo.evaluation.subjects import Named, base_of, find, safe_name
from lora_dpo.recipe.run_folder import RunFolder
from lora_dpo.recipe.schema import ModelSection
from tests.evaluation.folders import adapter, made, model


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Returns the working directory: a finished run `runs/small` with a checkpoint; elsewhere adapters and a model."""
    monkeypatch.chdir(tmp_path)
    made(Path("runs/small"))
    adapter(Path("some/adapter"), "org/base")
    adapter(Path("tuned"), "org/base")
    model(Path("whole"))
    return tmp_path


def test_what_words_stand_for(work: Path) -> None:
    run = RunFolder(Path("runs/small"))
    whole = made(Path("runs/whole"), "full")
    assert find("runs/small") == Named("run", "runs/small/adapter", run, "small")
    assert find("runs/whole") == Named("run", "runs/whole/model", whole, "whole")
    assert find("tuned") == Named("adapter", "tuned", None, "tuned")
    assert find("./whole/") == Named("model", "whole", None, "whole")
    assert find(str(work / "whole")) == Named("model", str(work / "whole"), None, "whole")
    assert find("some/adapter").name == "some--adapter"  # by itself the name would say nothing


def test_what_lies_in_a_run_is_that_run_s(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = RunFolder(work / "runs" / "small")
    assert find("runs/small/adapter") == Named("run", str(run.adapter), run, "small")
    assert find("runs/small/checkpoints/step-2") == Named(
        "adapter", "runs/small/checkpoints/step-2", run, "small-step-2"
    )
    monkeypatch.chdir(run.adapter)
    assert find(".") == Named("run", str(run.adapter), run, "small")
    monkeypatch.chdir(run.checkpoints)
    assert find("step-2") == Named("adapter", "step-2", run, "small-step-2")


def test_hub_ids(hub_cache) -> None:
    hub_cache("org/adapter", {"adapter_config.json": "{}", "config.json": "{}"})
    hub_cache("org/model", {"config.json": "{}"})
    assert find("org/adapter") == Named("adapter", "org/adapter", None, "org--adapter")
    assert find("org/model") == Named("model", "org/model", None, "org--model")
    with pytest.raises(UserError, match="^org/none is neither a folder here, nor an adapter or a model on the Hub"):
        find("org/none")


def test_gguf_files(work: Path) -> None:
    Path("tuned.gguf").write_bytes(b"GGUF")
    assert find("tuned.gguf") == Named("model", "tuned.gguf", None, "tuned")
    with pytest.raises(UserError, match="There is no model at other.gguf"):
        find("other.gguf")


@pytest.mark.parametrize(
    ("word", "what", "fix"),
    [
        ("runs/smal", "There is no run, adapter or model at runs/smal.", "Did you mean 'runs/small'?"),
        ("smal", "smal is neither a folder here, nor", "Did you mean 'runs/small'?"),
        ("./tunde", "There is no run, adapter or model at ./tunde.", "Did you mean 'tuned'?"),
        ("/no/such/place", "There is no run, adapter or model at /no/such/place.", "Known: runs/small."),
        ("not a name", "not a name is no name that the Hub could have", "Known: "),
        ("some", "some holds neither a run nor an adapter nor a model.", ""),
        ("tuned/adapter_config.json", "tuned/adapter_config.json is a file.", "Give the folder of a run"),
    ],
)
def test_a_typo_leads_to_the_nearest_name(word: str, what: str, fix: str, work: Path) -> None:
    with pytest.raises(UserError) as caught:
        find(word)
    assert caught.value.what.startswith(what)
    assert caught.value.fix.startswith(fix)


def test_runs_that_cannot_be_measured(work: Path) -> None:
    run = RunFolder(Path("runs/small"))
    (run.adapter / "adapter_config.json").unlink()
    with pytest.raises(UserError, match=r"^runs/small has no adapter: there is no runs/small/adapter/adapter_conf"):
        find("runs/small")
    run.report_json.unlink()
    with pytest.raises(UserError, match=r"^runs/small holds no finished run\.\n.*runs/small/checkpoints/step-N\."):
        find("runs/small")
    assert find("runs/small/checkpoints/step-2").kind == "adapter"
    made(Path("runs/cross"), evaluation={"folds": 3})
    with pytest.raises(UserError, match=r"runs/cross is a cross-validation.*\n.*such as runs/cross/fold-1\."):
        find("runs/cross")


def test_the_base_of_an_adapter(work: Path) -> None:
    assert base_of(find("tuned"), None) == ModelSection(name="org/base", revision="v2")
    assert base_of(find("tuned"), "whole") == ModelSection(name="whole")
    adapter(Path("bare"), None)
    with pytest.raises(UserError, match=r"bare does not say which model it belongs to\.\nName it: --base MODEL"):
        base_of(find("bare"), None)
    adapter(Path("moved"), "/no/such/model")
    with pytest.raises(UserError, match=r"The base of moved is not here\..*/no/such/model.*\nSay where it is: --base"):
        base_of(find("moved"), None)
    Path("bare/adapter_config.json").write_text("{")
    with pytest.raises(UserError, match=r"bare/adapter_config\.json: the adapter's configuration cannot be read"):
        base_of(find("bare"), None)


def test_the_base_of_a_model_must_be_named(work: Path) -> None:
    assert base_of(find("whole"), "tuned").name == "tuned"
    with pytest.raises(UserError, match=r"whole is a whole model.*\nName the model before the training: --base MODEL"):
        base_of(find("whole"), None)


def test_names_of_folders() -> None:
    assert [safe_name(name) for name in ("a b/c", ".hidden", "ü", "v1.2-x")] == ["a_b_c", "hidden", "model", "v1.2-x"]
