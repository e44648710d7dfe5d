from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from lora_dpo.errors import UserError
from lora_dpo.evaluation.asked import ask
from lora_dpo.evaluation.load import Loaded, load
from lora_dpo.pipeline import align
from lora_dpo.recipe.run_folder import RunFolder
from tests.small import small_recipe
from tests.tiny import save_tiny_model

TEST_SET = "test.jsonl"


@pytest.fixture(autouse=True)
def _test_set(trained: RunFolder) -> None:
    rows = [{"prompt": f"What is {n}?", "chosen": f"It is {n}.", "rejected": "Nobody knows."} for n in range(4)]
    Path(TEST_SET).write_text("\n".join(map(json.dumps, rows)))


@pytest.fixture
def base(trained: RunFolder) -> Path:
    """Returns the base model, moved to a place of its own, so that a test may change it."""
    folder = Path("base")
    shutil.copytree(trained.load_recipe().model.name, folder)
    return folder


def refusal(word: str, **options) -> UserError:
    with pytest.raises(UserError) as caught:
        load(ask(word, **options))
    return caught.value


@torch.no_grad()
def logits(loaded: Loaded, when: str) -> torch.Tensor:
    with getattr(loaded.subject.policies, when)() as model:
        return model(input_ids=torch.arange(9)[None]).logits


def plain(folder: Path | str, adapter: Path | str | None = None) -> torch.Tensor:
    """Returns the logits of a model, as Transformers and PEFT themselves load it."""
    model = AutoModelForCausalLM.from_pretrained(folder)
    if adapter is not None:
        model = PeftModel.from_pretrained(model, adapter)
    with torch.no_grad():
        return model.eval()(input_ids=torch.arange(9)[None]).logits


def test_a_run_is_its_base_and_its_adapter(trained: RunFolder) -> None:
    name, loaded = trained.load_recipe().model.name, load(ask("runs/small"))
    assert torch.allclose(logits(loaded, "before"), plain(name), atol=1e-6)
    assert torch.allclose(logits(loaded, "after"), plain(name, trained.adapter), atol=1e-6)
    assert not torch.allclose(logits(loaded, "after"), logits(loaded, "before"), atol=1e-3)
    assert len(loaded.subject.pairs) == len(loaded.subject.questions) == 5


def test_a_checkpoint_is_measured_like_its_run(trained: RunFolder) -> None:
    trained.report_json.unlink()
    name, loaded = trained.load_recipe().model.name, load(ask("runs/small/checkpoints/step-1"))
    early = plain(name, trained.checkpoints / "step-1")
    assert torch.allclose(logits(loaded, "after"), early, atol=1e-6)
    assert not torch.allclose(early, plain(name, trained.adapter), atol=1e-3)
    assert len(loaded.subject.pairs) == 5


def test_an_adapter_from_elsewhere(trained: RunFolder, base: Path) -> None:
    shutil.copytree(trained.adapter, "copy")
    own = load(ask("copy", data=TEST_SET))
    moved = load(ask("copy", base="base", data=TEST_SET))
    for when in ("before", "after"):
        assert torch.equal(logits(own, when), logits(moved, when))
    assert torch.allclose(logits(own, "after"), plain(base, trained.adapter), atol=1e-6)
    assert (len(own.subject.pairs), own.subject.questions) == (4, [])


def test_a_whole_model_is_compared_with_the_one_that_is_named(base: Path) -> None:
    tuned = changed(base, Path("tuned"))
    loaded = load(ask("tuned", base="base", data=TEST_SET))
    assert torch.allclose(logits(loaded, "before"), plain(base), atol=1e-6)
    assert torch.allclose(logits(loaded, "after"), plain(tuned), atol=1e-6)


def test_without_a_test_set_there_is_nothing_held_out(trained: RunFolder) -> None:
    shutil.copytree(trained.adapter, "copy")
    loaded = load(ask("copy", needs_test_set=False))
    assert (loaded.subject.pairs, loaded.held_out.counts) == ([], {})
    assert len(loaded.held_out.caveats) == 1


def test_a_continued_run_begins_where_its_adapter_ended(trained: RunFolder) -> None:
    name = trained.load_recipe().model.name
    recipe = small_recipe(
        name,
        Path("runs"),
        data={"path": "bundled/misconceptions", "limit": 24},
        adapter={"init_from": str(trained.path)},
        train={"learning_rate": 2e-2, "evals_per_epoch": 0},
        run={"name": "second"},
    )
    align(recipe)
    loaded = load(ask("runs/second"))
    assert torch.allclose(logits(loaded, "before"), plain(name, trained.adapter), atol=1e-6)
    assert torch.allclose(logits(loaded, "after"), plain(name, "runs/second/adapter"), atol=1e-6)


def changed(folder: Path, target: Path) -> Path:
    """Saves a model of other weights with the same tokenizer."""
    model = AutoModelForCausalLM.from_pretrained(folder)
    torch.manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(target)
    AutoTokenizer.from_pretrained(folder).save_pretrained(target)
    return target


def test_a_run_whose_base_has_changed(trained: RunFolder, base: Path) -> None:
    text = trained.recipe.read_text()
    trained.recipe.write_text(text.replace(trained.load_recipe().model.name, "base"))
    assert load(ask("runs/small")).subject.pairs  # the same weights elsewhere
    changed(base, base)
    error = refusal("runs/small")
    assert error.what == "base is another model than the one that runs/small was trained on."
    hashes = error.why.removeprefix("The weights' hash is ").removesuffix(".").split("; it was ")
    assert len(set(hashes)) == 2
    assert all(len(digest) == 12 for digest in hashes)


def test_an_adapter_on_another_base(trained: RunFolder, base: Path) -> None:
    shutil.copytree(trained.adapter, "copy")
    changed(base, Path("other"))
    error = refusal("copy", base="other", data=TEST_SET)
    assert error.what == "other is another model than the one that copy was trained on."
    assert "; it was " in error.why
    Path("copy/provenance.json").unlink()  # an adapter that others have trained does not say it
    assert load(ask("copy", base="other", data=TEST_SET)).subject.pairs


def test_an_adapter_that_does_not_fit(trained: RunFolder, tmp_path: Path) -> None:
    shutil.copytree(trained.adapter, "copy")
    Path("copy/provenance.json").unlink()
    file = Path("copy/adapter_model.safetensors")
    tensors = load_file(file)
    save_file(dict(list(tensors.items())[1:]), file)
    assert "1 tensors have no counterpart" in refusal("copy", data=TEST_SET).what
    file.write_bytes(file.read_bytes()[:40])
    assert "The adapter copy cannot be put on this model" in refusal("copy", data=TEST_SET).what


def test_another_tokenizer(trained: RunFolder, base: Path) -> None:
    shutil.copytree(trained.adapter, "copy")
    other = AutoTokenizer.from_pretrained("copy")
    other.eos_token = "<|eot_id|>"
    for place in ("copy", str(trained.adapter), str(changed(base, Path("tuned")))):
        other.save_pretrained(place)
    for word, options in (("copy", {"data": TEST_SET}), ("runs/small", {}), ("tuned", {"base": "base"})):
        error = refusal(word, **{"data": TEST_SET, **options})
        assert "its eos_token is '<|eot_id|>', the base's '<|end_of_text|>'" in error.what
    save_tiny_model("gemma2", Path("gemma2"))
    assert "is token 0 there, no token in the base" in refusal("gemma2", base="base", data=TEST_SET).what


def test_another_template_matters_where_it_is_used(trained: RunFolder) -> None:
    shutil.copytree(trained.adapter, "copy")
    Path("copy/chat_template.jinja").write_text("{{ messages[0]['content'] }}")
    assert "its chat template is another one" in refusal("copy", data=TEST_SET).what
    loaded = load(ask("copy", data=TEST_SET, overrides=["model.template=plain"]))
    assert loaded.subject.encoder.style == "plain"


def test_a_judge_without_labelled_answers_is_refused_before_the_model_is_loaded(
    trained: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lora_dpo.evaluation.load.load_model", None)
    error = refusal("runs/small", data=TEST_SET, overrides=["evaluation.judges=org/judge"])
    assert error.what.startswith("evaluation.judges names a judge, but no held-out question has labelled answers")
