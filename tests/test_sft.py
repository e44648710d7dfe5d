from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from lora_dpo.data.chat import TurnEncoder
from lora_dpo.data.manifest import read_examples, read_manifest, read_pairs
from lora_dpo.data.pair import group_of
from lora_dpo.errors import UserError
from lora_dpo.evaluating import measure
from lora_dpo.evaluation.asked import ask
from lora_dpo.pipeline import align
from lora_dpo.recipe.loading import load_recipe
from lora_dpo.recipe.run_folder import RunFolder
from lora_dpo.recipe.schema import Recipe
from lora_dpo.recipe.stages import stage_recipe
from tests.distributed.runs import MODES, SmallRun
from tests.process import lora_dpo
from tests.small import small_recipe

QUESTIONS = 20


def both_stages(model: Path, folder: Path, **sections: dict[str, Any]) -> Recipe:
    """Returns a recipe whose SFT stage learns the chosen answers of the preferences of its DPO stage."""
    rows = [
        {"prompt": f"What is {n}?", "chosen": "one " * (1 + n % 5), "rejected": "Two." + " So they say." * (n % 3)}
        for n in range(QUESTIONS)
    ]
    file = folder / "pairs.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    values = {
        "data": {"path": str(file), "split": {"test": 0.25, "validation": 0.1}},
        "sft": {"path": str(file), "max_steps": 4, "learning_rate": 2e-2},
        "train": {"learning_rate": 1e-2, "max_steps": 3},
    }
    for section, keys in sections.items():
        values[section] = {**values.get(section, {}), **keys}
    return small_recipe(model, folder / "runs", **values)


@pytest.fixture(scope="module")
def sft(tiny_models, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A finished SFT run, in the folder runs/ of a working directory with the data."""
    folder = tmp_path_factory.mktemp("sft")
    return RunFolder(align(stage_recipe(both_stages(tiny_models("tinyllama"), folder), "sft")))


def report_of(run: RunFolder) -> dict[str, Any]:
    return json.loads(run.report_json.read_text(encoding="utf-8"))


def answer_loss(model: torch.nn.Module, run: RunFolder) -> float:
    """Returns the mean over the held-out questions of -log p a token, by the model's own forward pass."""
    encoder = TurnEncoder(AutoTokenizer.from_pretrained(run.adapter))
    losses = []
    for one in encoder.encode_examples(read_examples(run.data / "examples.jsonl")["test"]):
        ids = torch.tensor([one.prompt_ids + one.answer_ids])
        with torch.no_grad():
            log_probs = model(ids).logits[0, :-1].log_softmax(-1).gather(-1, ids[0, 1:, None])
        losses.append(-log_probs[len(one.prompt_ids) - 1 :].mean().item())
    return sum(losses) / len(losses)


def test_the_run_folder_is_like_any_other(sft: RunFolder) -> None:
    assert sft.path.name == "small-sft"
    assert sft.is_complete
    recipe = sft.load_recipe()
    assert (recipe.run.stage, recipe.run.name) == ("sft", "small-sft")
    assert sorted(file.name for file in sft.data.iterdir()) == ["examples.jsonl", "splits.json"]
    assert {file.stem for file in sft.plots.iterdir()} >= {"loss", "token_accuracy", "training", "losses", "evaluation"}
    assert json.loads(sft.provenance.read_text())["stage"] == "sft"
    lines = [json.loads(line) for line in sft.metrics.read_text().splitlines()]
    assert [line["step"] for line in lines if line["phase"] == "train"] == [1, 2, 3, 4]
    assert all("examples_per_second" in line for line in lines if line["phase"] == "train")
    assert lines[-1]["loss"] < lines[0]["loss"] - 0.1
    counts = {name: split["examples"] for name, split in read_manifest(sft.data / "splits.json").items()}
    assert counts == {"train": 13, "validation": 2, "test": 5}


def test_the_report_says_what_plain_peft_computes(sft: RunFolder) -> None:
    report = report_of(sft)
    base = AutoModelForCausalLM.from_pretrained(sft.load_recipe().model.name)
    before = answer_loss(base, sft)
    after = answer_loss(PeftModel.from_pretrained(base, sft.adapter).eval(), sft)
    loss = report["sft"]["loss"]
    assert (loss["before"], loss["after"]) == (pytest.approx(before, abs=1e-4), pytest.approx(after, abs=1e-4))
    assert after < before - 0.1
    assert (loss["n"], loss["better"], report["sft"]["n_examples"]) == (5, 5, 5)
    assert report["stage"] == "sft"
    assert report["preference"] is report["multiple_choice"] is None
    assert report["verdict"].startswith("Better: held-out loss")
    assert report["cost"]["perplexity_before"] != report["cost"]["perplexity_after"]
    assert report["samples"][0]["chosen"].startswith("one")
    assert report["examples"]["improved"][0]["metric"] == "loss"
    page = sft.report_md.read_text()
    assert "SFT, 4 steps of 4 examples" in page
    assert "| loss, nats a token |" in page


def test_it_is_measured_again_from_its_folder(sft: RunFolder) -> None:
    before = report_of(sft)
    measure(ask(str(sft.path)), "chat")
    assert report_of(sft)["sft"] == before["sft"]


@pytest.mark.parametrize(("mode", "rank"), [("continue", 4), ("merge", 8)])
def test_the_dpo_stage_begins_with_it(mode: str, rank: int, sft: RunFolder, tiny_models) -> None:
    folder, model = sft.path.parent.parent, tiny_models("tinyllama")
    recipe = stage_recipe(both_stages(model, folder, adapter={"init_mode": mode}), "dpo")
    assert recipe.adapter.init_from == str(sft.path)
    run = RunFolder(align(recipe, overwrite=True))
    first = json.loads(run.metrics.read_text().splitlines()[0])
    assert first["loss"] == pytest.approx(0.693147, abs=1e-5)
    learnt = {group_of(one.prompt) for one in read_examples(sft.data / "examples.jsonl")["train"]}
    tested = {group_of(pair.prompt) for pair in read_pairs(run.data / "pairs.jsonl")["test"]}
    assert tested
    assert not learnt & tested
    assert json.loads((run.adapter / "adapter_config.json").read_text())["r"] == rank
    before = report_of(run)
    assert before["stage"] == "dpo"
    measure(ask(str(run.path)), "chat")  # from the saved adapter, on the original base
    for when in ("before", "after"):
        found = report_of(run)["preference"]["margin"][when]
        assert found == pytest.approx(before["preference"]["margin"][when], abs=1e-4)


def test_a_test_split_that_was_learnt_is_refused(sft: RunFolder, tiny_models) -> None:
    folder = sft.path.parent.parent
    other = both_stages(tiny_models("tinyllama"), folder, data={"split": {"seed": 1}}, run={"name": "other"})
    other = other.model_copy(update={"adapter": other.adapter.model_copy(update={"init_from": str(sft.adapter)})})
    with pytest.raises(UserError, match=r"[1-5] of \d held-out questions were learnt by .*small-sft, which this run"):
        align(stage_recipe(other, "dpo"))
    assert not RunFolder.of(other).path.exists()


def test_the_dpo_stage_waits_for_it(tiny_models, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="where no SFT stage has gone through.*\n.*sft.path.*\nRun `lora-dpo sft`"):
        align(stage_recipe(both_stages(tiny_models("tinyllama"), tmp_path), "dpo"))


def test_a_whole_model_is_taught_and_aligned(tiny_models, tmp_path: Path) -> None:
    recipe = both_stages(tiny_models("tinyllama"), tmp_path, adapter={"method": "full"}, evaluation={"samples": 0})
    first = RunFolder(align(stage_recipe(recipe, "sft")))
    loss = report_of(first)["sft"]["loss"]
    assert loss["after"] < loss["before"] - 0.1
    aligned = stage_recipe(recipe, "dpo")
    assert aligned.model.name == str(first.model)
    metrics = RunFolder(align(aligned)).metrics.read_text().splitlines()
    assert json.loads(metrics[0])["loss"] == pytest.approx(0.693147, abs=1e-5)


@pytest.mark.slow
def test_4_bit_weights_are_taught_and_aligned(tiny_models, tmp_path: Path) -> None:
    recipe = both_stages(tiny_models("tinyllama"), tmp_path, adapter={"method": "qlora"}, evaluation={"samples": 0})
    first = RunFolder(align(stage_recipe(recipe, "sft")))
    loss = report_of(first)["sft"]["loss"]
    assert loss["after"] < loss["before"] - 0.1
    second = RunFolder(align(stage_recipe(recipe, "dpo")))
    assert json.loads(second.metrics.read_text().splitlines()[0])["loss"] == pytest.approx(0.693147, abs=1e-3)
    margins = report_of(second)["preference"]["margin"]
    assert margins["before"] != margins["after"]


def test_killed_and_resumed_is_never_killed(tiny_models, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The killed process is one of its own; the others run here, with as many threads."""
    torch.set_num_threads(1)
    model = tiny_models("llama")
    outcomes = []
    for name in ("killed", "plain"):
        run = SmallRun(tmp_path / name, model, "sft")
        if name == "killed":
            done = run.start(MODES["single"], fault={"kind": "kill", "at": "step", "number": 5})
            assert done.returncode != 0
            assert run.checkpoints() == [3]
        monkeypatch.chdir(run.folder)
        assert align(stage_recipe(load_recipe("recipe.yaml"), "sft")).resolve() == run.path
        outcomes.append(run.outcome())
    assert outcomes[0] == outcomes[1]
    assert json.loads((tmp_path / "killed" / "runs" / "small-sft" / "provenance.json").read_text())["resumed"]


@pytest.mark.slow
def test_the_command_teaches_and_shows_what_is_finished(tiny_models, tmp_path: Path) -> None:
    run = SmallRun(tmp_path, tiny_models("llama"), "sft")
    words = ("sft", "recipe.yaml", "sft.max_steps=1", "evaluation.samples=0")
    first = lora_dpo(*words, cwd=tmp_path, CUDA_VISIBLE_DEVICES="")
    assert first.returncode == 0, first.stderr
    assert "-m lora_dpo.sft recipe.yaml sft.max_steps=1" in first.stderr
    assert "Examples read as prompt, chosen, rejected: chosen answers" in first.stderr
    assert run.path.joinpath("report.json").is_file()
    again = lora_dpo(*words, cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert "small-sft is finished; this is its report." in " ".join(again.stderr.split())
    assert "loss, nats a token" in again.stdout
    shown = lora_dpo("data", "recipe.yaml", "--sft", cwd=tmp_path)
    assert "One training example: prompt, not scored  answer" in shown.stdout


def test_a_recipe_without_an_sft_stage_is_refused(tmp_path: Path) -> None:
    done = lora_dpo("sft", "quickstart", cwd=tmp_path)
    assert done.returncode == 2
    assert "The recipe has no SFT stage: sft.path is null.\nName the data: sft.path=FILE." in done.stderr
    assert list(tmp_path.iterdir()) == []
