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
from lora_dpo.hub.template import check_template
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
    assert "A language model; it needs nothing but Transformers." in found.text


def test_of_what_was_made_elsewhere_nothing_is_claimed(tmp_path: Path) -> None:
    folder = model(tmp_path / "m")
    write_json(folder / "training" / "report.json", {"schema_version": 2})
    for base in (None, "org/base"):
        found = card(find_subject(str(folder), None), base=base)
        assert (found.data.tags or []) == []
        assert found.data.get("base_model_relation") is None
        assert "lora-dpo" not in found.content
        assert "trained whole" not in found.content
    other = adapter(tmp_path / "a")
    config = json.loads((other / "adapter_config.json").read_text())
    write_json(other / "adapter_config.json", {**config, "peft_type": "IA3"})
    found = card(find_subject(str(other), None))
    assert "An IA3 adapter for [org/base]" in found.text
    assert found.data.base_model_relation == "adapter"


def test_a_model_that_was_trained_whole_says_so(tmp_path: Path) -> None:
    folder, recipe = model(tmp_path / "m"), small_recipe("org/base", tmp_path, adapter={"method": "full"})
    known = {"model": {"name": "org/base", "weights_sha256": None}, "recipe": recipe.model_dump(mode="json")}
    write_json(folder / "provenance.json", {"stage": "dpo", **known})
    found = card(find_subject(str(folder), None))
    assert "[org/base](https://huggingface.co/org/base), trained whole. Made with lora-dpo" in found.text
    assert found.data.tags == ["dpo", "alignment", "lora-dpo"]


def merged(folder: Path) -> Path:
    """Makes a folder that looks like a merged model, with what was measured of it."""
    base = {"name": "org/base", "weights_sha256": None}
    own = {"stage": "dpo", "model": base, "weights_sha256": "a"}
    write_json(
        model(folder) / "provenance.json",
        {"stage": "merge", "model": base, "dtype": "bfloat16", "adapters": [part_of(own)]},
    )
    found = {"top1_agreement": 0.987, "kl_mean": 2e-4, "logp_max_abs": 0.3}
    report = {
        "bounds": {"top1_agreement": 0.9, "kl_mean": 5e-3, "logp_max_abs": 2.0},
        "untrained": {"top1_agreement": 0.5, "kl_mean": 0.7, "logp_max_abs": 9.0},
        "probes": {"source": "the test split of runs/x", "questions": 4, "tokens": 321},
        "distances": {"full": found, "quantized": {**found, "kl_mean": 1e-4}},
        "onto": "quantized",
    }
    write_json(folder / "merge_report.json", found | report)
    return folder


def test_a_merged_model_says_how_far_it_is_from_what_was_trained(tmp_path: Path) -> None:
    text = card(find_subject(str(merged(tmp_path / "m")), None)).text
    assert "| same most likely token | 98.70% | at least 90% | 50.00% |" in text
    assert "| KL from base + adapters, nats a token | 2.00e-04 | at most 5e-03 | 7.00e-01 |" in text
    assert "on 321 tokens of 4 questions of the test split of runs/x." in text
    assert (
        "Merged onto the quantized base it is 1.00e-04 nats a token from what was trained on 4 bits, which was" in text
    )
    assert "Merged onto the full base it is 2.00e-04 nats a token from what was trained on 4 bits.\n" in text
    assert "\n\n\n" not in text


def test_without_a_tokenizer_the_card_takes_the_bases(tmp_path: Path) -> None:
    folder = adapter(tmp_path / "a")
    assert 'AutoTokenizer.from_pretrained("org/base")' in card(find_subject(str(folder), None)).text
    (folder / "tokenizer.json").write_text("{}")
    assert 'AutoTokenizer.from_pretrained("me/tuned")' in card(find_subject(str(folder), None)).text


@pytest.mark.parametrize("content", ["{", "[]", '{"probes": 3}'])
def test_a_damaged_report_is_named(tmp_path: Path, content: str) -> None:
    folder = merged(tmp_path / "m")
    (folder / "merge_report.json").write_text(content)
    with pytest.raises(UserError, match="merge_report.json cannot be read|is not whole"):
        card(find_subject(str(folder), None))
    merged(folder)
    (folder / "training").mkdir()
    (folder / "training" / "report.json").write_text(content.replace("probes", 'schema_version": 2, "data'))
    with pytest.raises(UserError, match="report.json cannot be read|is not whole"):
        card(find_subject(str(folder), None))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a\n{{ 1/0 }}", "mine.jinja:2: The template cannot be filled in: ZeroDivisionError"),
        ("{{ name + 1 }}", "TypeError"),
        ("{% include 'other.md' %}", "It is one file, without others."),
        ("{% for %}", "The template has a mistake"),
        ("---\nlicense: [x\n---\n", "The card's metadata cannot be read"),
        ("---\n- a\n---\n", "The card's metadata cannot be read"),
        ("---\nlicense: apache2\n---\n", "license: 'apache2', which the Hub does not know"),
        ("---\ntags: 3\n---\n", "The card's metadata cannot be read"),
        ("---\ntags: [3]\n---\n", "tags: [3], which are no words"),
        ("---\nmodel-index: 3\n---\n", "The card's metadata cannot be read"),
    ],
)
def test_mistakes_in_templates_are_named(tmp_path: Path, text: str, words: str) -> None:
    subject, template = find_subject(str(adapter(tmp_path / "a")), None), tmp_path / "mine.jinja"
    template.write_text(text)
    with pytest.raises(UserError) as refused:
        render_card(subject, facts(), template)
    assert words in str(refused.value)


def test_a_template_must_name_a_licence_that_is_passed_on(tmp_path: Path) -> None:
    subject, template = find_subject(str(adapter(tmp_path / "a")), None), tmp_path / "mine.jinja"
    template.write_text("---\nlicense: mit\n---\n# mine\n")
    assert "# mine" in render_card(subject, facts(), template)
    with pytest.raises(UserError, match="license: 'mit', but the base model is under gemma"):
        render_card(subject, facts("google/gemma-2-2b"), template)


def test_a_template_can_be_checked_before_there_is_anything_to_fill_it_with(tmp_path: Path) -> None:
    template = tmp_path / "mine.jinja"
    template.write_text("{{ name }} {% for x in worse %}{{ x }}{% endfor %}")
    check_template(template, ["name", "worse"])
    with pytest.raises(UserError, match="The template names 'worse', which there is not"):
        check_template(template, ["name"])
    template.write_text("{{ name ")
    with pytest.raises(UserError, match="The template has a mistake"):
        check_template(template, ["name"])


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
    assert [name for name in values if f"`{name}`" not in page] == []


def test_data_sets_are_those_of_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my" / "pairs").mkdir(parents=True)
    assert data_sets(small_recipe("x/y", tmp_path, data={"path": ["my/pairs", "org/pairs"]})) == ["org/pairs"]
    recipe = small_recipe("x/y", tmp_path, data={"path": ["org/pairs", "own.csv", "bundled/misconceptions", "a/b/c"]})
    assert data_sets(recipe) == ["org/pairs"]
    assert is_hub_id("org/data.v2") is True
    assert is_hub_id("folder/own.jsonl") is False


def test_names_of_models() -> None:
    assert [name for name in ("gpt2", "org/x", "models/base") if not is_hub_name(name)] == []
    none = ("/models/x", "package:a/b.gguf", "./x", "~/x", "a/b/c", "not a name", "org/x.gguf", "org/", "")
    assert [name for name in none if is_hub_name(name)] == []


@pytest.mark.slow
def test_the_verb_prints_or_writes_it(trained: RunFolder, tmp_path: Path) -> None:
    printed = lora_dpo("card", "runs/small", "me/x", cwd=tmp_path)
    assert printed.returncode == 0, printed.stderr
    written = lora_dpo("card", "runs/small", "me/x", "-o", "README.md", cwd=tmp_path)
    assert (written.returncode, written.stdout) == (0, ""), written.stderr
    assert (tmp_path / "README.md").read_text() == printed.stdout
    assert ModelCard(printed.stdout).data.pipeline_tag == "text-generation"
