"""`lora-dpo run`: a recipe's stages in order, each once."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from lora_dpo.cluster.start import Request
from lora_dpo.errors import UserError
from lora_dpo.files import write_json
from lora_dpo.recipe.run_folder import RunFolder
from lora_dpo.run import run
from tests.adapters import spoil
from tests.process import lora_dpo
from tests.small import preferences, small_recipe
from tests.test_recipes import overrides_for


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A recipe of all stages, in the working directory of a machine without network."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    (tmp_path / "all.yaml").write_text(
        "model: {name: nobody/nothing}\ndata: {path: pairs.jsonl}\nsft: {path: answers.csv}\nrun: {name: all}\n",
        encoding="utf-8",
    )
    return tmp_path / "all.yaml"


def stages(capsys: pytest.CaptureFixture[str], *overrides: str, **options) -> list[str]:
    """Returns what a dry run says of the stages."""
    assert run(Request("all.yaml", ("train.strategy=single", *overrides), dry_run=True), **options) == 0
    return [line for line in capsys.readouterr().err.splitlines() if not line.startswith("$")]


def test_takes_the_stages_that_the_recipe_has(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert stages(capsys) == ["Stage 1 of 3, sft:", "Stage 2 of 3, dpo:", "Stage 3 of 3, merge:"]
    assert stages(capsys, through="dpo") == ["Stage 1 of 2, sft:", "Stage 2 of 2, dpo:"]
    assert stages(capsys, "sft.path=null") == ["Stage 1 of 2, dpo:", "Stage 2 of 2, merge:"]
    why, *rest = stages(capsys, "adapter.method=full")
    assert why.startswith("There is no stage merge: adapter.method full trains the whole model")
    assert rest == ["Stage 1 of 2, sft:", "Stage 2 of 2, dpo:"]
    why, *rest = stages(capsys, "sft.path=null", "evaluation.folds=3")
    assert why.startswith("There is no stage merge: evaluation.folds 3")
    assert "Stage 1 of 1, dpo:" in rest


def test_publishes_last_where_the_recipe_says_where(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert stages(capsys, "sft.path=null", "hub.repo=me/x")[-1] == "Stage 3 of 3, push:"
    assert stages(capsys, "sft.path=null", "hub.repo=me/x", through="merge")[-1] == "Stage 2 of 2, merge:"
    assert stages(capsys, "adapter.method=full", "hub.repo=me/x")[-1] == "Stage 3 of 3, push:"
    folds = ("sft.path=null", "hub.repo=me/x", "evaluation.folds=3")
    assert not any("push" in line for line in stages(capsys, *folds))
    run(Request("all.yaml", ("train.strategy=single", "hub.repo=me/x"), dry_run=True))
    assert "$ lora-dpo push runs/all me/x --yes" in capsys.readouterr().err


def test_a_push_that_cannot_be_is_refused_before_anything_is_trained(
    recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr("lora_dpo.hub.preflight.get_token", lambda: None)
    with pytest.raises(UserError, match="There is no Hub token"):
        run(Request("all.yaml", ("hub.repo=me/x",)))
    with pytest.raises(UserError, match="cannot be a repository on the Hub"):
        run(Request("all.yaml", ("hub.repo=x",)))
    assert not Path("runs").exists()


def test_a_stage_that_the_recipe_has_not_is_refused(recipe: Path) -> None:
    with pytest.raises(UserError, match="--through push, but the recipe has no such stage"):
        run(Request("all.yaml"), "push")
    with pytest.raises(UserError, match="--through sft, but the recipe has no such stage"):
        run(Request("all.yaml", ("sft.path=null",)), "sft")


def test_a_dry_run_shows_how_the_model_would_be_merged(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(Request("all.yaml", ("train.strategy=single", "merge.dtype=bfloat16", "merge.onto=full"), dry_run=True))
    assert "$ lora-dpo merge runs/all -o runs/all/merged --dtype bf16 --onto full" in capsys.readouterr().err


def merged_already(folder: Path, **record) -> RunFolder:
    """Writes what a finished run says of itself, with a merged model."""
    own = small_recipe("nobody/nothing", folder, data={"path": "pairs.jsonl"}, sft={"path": None})
    result = RunFolder.of(own)
    result.create(own, overwrite=False).release()
    write_json(result.report_json, {})
    base = {"weights_sha256": "b"}
    write_json(result.adapter / "provenance.json", {"model": base, "weights_sha256": "a" * 64})
    known = {"model": base, "adapters": [{"weights_sha256": "a" * 64}], "dtype": "float32", "onto": "full", **record}
    write_json(result.merged / "provenance.json", known)
    return result


@pytest.mark.parametrize(
    ("overrides", "record", "words"),
    [
        ((), {"adapters": [{"weights_sha256": "c" * 64}]}, "Its adapter is cccccccccccc, not aaaaaaaaaaaa."),
        (("merge.dtype=bfloat16",), {}, "Its merge.dtype is float32, not bfloat16."),
        (("merge.onto=quantized",), {}, "Its merge.onto is full, not quantized."),
    ],
)
def test_another_merged_model_is_not_taken_for_this_one(
    tmp_path: Path, overrides: tuple[str, ...], record: dict, words: str
) -> None:
    place = merged_already(tmp_path, **record)
    before = (place.merged / "provenance.json").read_bytes()
    with pytest.raises(UserError, match="not the model that would be made now") as refused:
        run(Request(str(place.recipe), overrides))
    assert words in str(refused.value)
    assert (place.merged / "provenance.json").read_bytes() == before


def test_an_earlier_run_that_is_replaced_takes_its_merged_model_with_it(tmp_path: Path) -> None:
    place = merged_already(tmp_path)
    place.create(place.load_recipe(), overwrite=True).release()
    place.discard_replaced()
    assert not place.merged.exists()


@pytest.mark.slow
def test_runs_all_stages_once_and_goes_on_where_it_stopped(tiny_models, tmp_path: Path) -> None:
    pairs = preferences(16)
    rows = [{"prompt": pair.prompt[-1]["content"], "chosen": pair.chosen, "rejected": pair.rejected} for pair in pairs]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    model = tiny_models("llama")
    own = [*overrides_for("tinyllama_sft_dpo", model, tmp_path), "run.folder=runs"]

    def go(*words: str) -> str:
        result = lora_dpo("run", "tinyllama_sft_dpo", *own, *words, cwd=tmp_path)
        assert result.returncode == 0, result.stderr
        return result.stderr

    assert "Stage 1 of 1, sft:" in go("--through", "sft")
    told = go()
    assert "Stage 1 of 3, sft: complete, in runs/tinyllama_sft_dpo-sft" in told
    assert "Stage 2 of 3, dpo:\n" in told
    assert "Stage 3 of 3, merge:\n" in told
    folder = tmp_path / "runs" / "tinyllama_sft_dpo"
    made = {file: file.stat().st_mtime_ns for file in folder.rglob("*") if file.is_file() and ".lock" not in file.name}
    told = go()
    assert "Stage 3 of 3, merge: complete, in runs/tinyllama_sft_dpo/merged" in told
    # An SFT stage that was made again is another beginning than the DPO stage's.
    adapter = tmp_path / "runs" / "tinyllama_sft_dpo-sft" / "adapter" / "adapter_model.safetensors"
    kept = adapter.read_bytes()
    spoil(adapter)
    result = lora_dpo("run", "tinyllama_sft_dpo", *own, cwd=tmp_path)
    assert result.returncode == 2
    assert "runs/tinyllama_sft_dpo-sft is not the adapter that runs/tinyllama_sft_dpo goes on from" in result.stderr
    adapter.write_bytes(kept)
    assert "runs/tinyllama_sft_dpo is finished; this is its report." in told
    assert {file: file.stat().st_mtime_ns for file in made} == made
    ids = torch.tensor([[5, 6, 7, 8]])
    merged = AutoModelForCausalLM.from_pretrained(folder / "merged")
    trained = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(model), folder / "adapter")
    with torch.no_grad():
        assert torch.allclose(merged(ids).logits, trained(ids).logits, atol=1e-5)
