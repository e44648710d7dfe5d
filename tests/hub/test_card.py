"""The model card: metadata that the Hub reads, and a page that says what was found."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from lora_dpo.errors import UserError
from lora_dpo.files import write_json
from lora_dpo.hub.card import Facts, card_values, render_card
from lora_dpo.hub.licence import licence_of
from lora_dpo.hub.results import data_sets, is_hub_id, is_hub_name
from lora_dpo.hub.subject import Subject, find_subject
from lora_dpo.recipe.run_folder import RunFolder
from tests.hub.folders import adapter, model, part_of
from tests.process import lora_dpo
from tests.small import small_recipe


def facts(base: str | None = "org/base", repo: str = "me/tuned") -> Facts:
    return Facts(repo, base, licence_of(base, {}, None, None))


def card(subject: Subject, **changes) -> ModelCard:
    return ModelCard(render_card(subject, facts(**changes)))


@pytest.mark.slow
def test_a_runs_card_has_everything(trained: RunFolder) -> None:
    found = card(find_subject(str(trained.path), "adapter"), base="google/gemma-2-2b-it")
    data = found.data
    assert (data.base_model, data.base_model_relation) == ("google/gemma-2-2b-it", "adapter")
    assert (data.library_name, data.pipeline_tag, data.license) == ("peft", "text-generation", "gemma")
    assert data.license_link == "https://ai.google.dev/gemma/terms"
    assert {"dpo", "lora", "lora-dpo"} <= set(data.tags)
    report = json.loads(trained.report_json.read_text())
    results = {result.metric_name.split(" (")[0]: result for result in data.eval_results}
    for metric in ("mc0", "mc1", "mc2"):
        assert results[metric.upper()].metric_value == round(report["multiple_choice"][metric]["after"], 4)
        assert f"{report['multiple_choice'][metric]['before']:.4f}" in results[metric.upper()].metric_name
    assert results["MC1"].dataset_name == f"misconceptions, {report['multiple_choice']['mc1']['n']} held-out questions"
    text = found.text
    assert f"**{report['verdict']}**" in text
    assert 'AutoPeftModelForCausalLM.from_pretrained("me/tuned")' in text
    assert "| MC1 |" in text
    assert "(training/plots/evaluation.png)" in text
    assert f"`{report['data']['splits']['test']['hash']}`" in text
    assert all(f"- {caveat}" in text for caveat in report["caveats"])
    assert "Gemma's terms hold for derived models" in text
    assert "lora-dpo run training/recipe.yaml" in text
    assert "| method | LoRA, r 4, alpha 8 |" in text
    assert "\n\n\n" not in text


@pytest.mark.slow
def test_a_merged_model_is_loaded_by_transformers_alone(trained: RunFolder) -> None:
    record = json.loads((trained.adapter / "provenance.json").read_text())
    merged = {**record, "stage": "merge", "dtype": "float32", "adapters": [part_of(record)]}
    write_json(model(trained.merged) / "provenance.json", merged)
    found = card(find_subject(str(trained.path), None))
    assert (found.data.library_name, found.data.base_model_relation) == ("transformers", "finetune")
    assert 'AutoModelForCausalLM.from_pretrained("me/tuned")' in found.text
    assert "with an adapter merged into its weights (float32)" in found.text
    assert "| loss | sigmoid, beta 0.1 |" in found.text


def test_an_adapter_of_unknown_origin_has_a_short_card_that_says_so(tmp_path: Path) -> None:
    found = card(find_subject(str(adapter(tmp_path / "a")), None))
    assert found.data.eval_results is None
    assert "It comes without a report" in found.text
    assert "## Training" not in found.text
    assert "## How to reproduce it" not in found.text


def test_an_adapter_without_its_run_still_says_how_it_was_trained(tmp_path: Path) -> None:
    folder = adapter(tmp_path / "a")
    recipe = small_recipe("org/base", tmp_path).model_dump(mode="json")
    known = {"stage": "dpo", "model": {"name": "org/base", "weights_sha256": None}, "recipe": recipe}
    write_json(folder / "provenance.json", known)
    text = card(find_subject(str(folder), None)).text
    assert "| method | LoRA, r 4, alpha 8 |" in text
    assert "It comes without a report" in text
    assert "has the recipe, and the hashes" in text
    assert "training.png" not in text


def test_a_base_that_is_not_on_the_hub_is_no_base_model(tmp_path: Path) -> None:
    found = card(find_subject(str(model(tmp_path / "m")), None), base=None)
    assert found.data.get("base_model") is None
    assert found.data.get("base_model_relation") is None
    assert "A base model that is not on the Hub, trained whole." in found.text


def test_a_template_of_the_users_own(tmp_path: Path) -> None:
    subject, template = find_subject(str(adapter(tmp_path / "a")), None), tmp_path / "mine.jinja"
    template.write_text("---\n{{ card_data.to_yaml() }}\n---\n# {{ name }} by me, on {{ base }}\n")
    assert ModelCard(render_card(subject, facts(), template)).text.strip() == "# tuned by me, on org/base"
    template.write_text("fine\n{{ verdict }}")
    with pytest.raises(UserError, match="'verdict' is undefined") as refused:
        render_card(subject, facts(), template)
    assert "report" in refused.value.fix
    template.write_text("fine\n{% if %}")
    with pytest.raises(UserError, match=r"mine\.jinja:2: The template has a mistake"):
        render_card(subject, facts(), template)
    with pytest.raises(UserError, match="cannot be read"):
        render_card(subject, facts(), tmp_path / "no.jinja")


def test_the_documented_values_are_those_that_a_template_gets(tmp_path: Path) -> None:
    values = card_values(find_subject(str(adapter(tmp_path / "a")), None), facts())
    page = (Path(__file__).parents[2] / "docs" / "hub.md").read_text(encoding="utf-8")
    assert all(f"`{name}`" in page for name in values)


def test_data_sets_are_those_of_the_hub(tmp_path: Path) -> None:
    recipe = small_recipe("x/y", tmp_path, data={"path": ["org/pairs", "own.csv", "bundled/misconceptions", "a/b/c"]})
    assert data_sets(recipe) == ["org/pairs"]
    assert is_hub_id("org/data.v2") is True
    assert is_hub_id("folder/own.jsonl") is False


def test_names_of_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "base").mkdir()
    assert [is_hub_name(name) for name in ("gpt2", "org/x", "base", "/models/x", "package:a/b.gguf", "./x")] == [
        True,
        True,
        False,
        False,
        False,
        False,
    ]


@pytest.mark.slow
def test_the_verb_prints_or_writes_it(trained: RunFolder, tmp_path: Path) -> None:
    printed = lora_dpo("card", "runs/small", "me/x", cwd=tmp_path)
    assert printed.returncode == 0, printed.stderr
    written = lora_dpo("card", "runs/small", "me/x", "-o", "README.md", cwd=tmp_path)
    assert (written.returncode, written.stdout) == (0, ""), written.stderr
    assert (tmp_path / "README.md").read_text() == printed.stdout
    assert ModelCard(printed.stdout).data.pipeline_tag == "text-generation"
