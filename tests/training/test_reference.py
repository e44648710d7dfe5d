"""Reference log-probs kept on disk: computed once, shared, checked, and the same as a live reference's."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest
import torch

from lora_dpo.errors import UserError
from lora_dpo.model.cache import cache_folder
from lora_dpo.recipe.schema import Loss, Recipe
from lora_dpo.training import reference as module
from lora_dpo.training.reference import fill_reference
from lora_dpo.training.trainer import PreferenceTrainer
from tests.reference import rewrite_sums
from tests.small import small_recipe, small_trainer

COLUMNS = ("ref_chosen_logps", "ref_rejected_logps")
SIZE = {"count": 12, "per_question": 3, "validation": 2}


def unfilled(recipe: Recipe, **size: Any) -> PreferenceTrainer:
    return small_trainer(recipe, **{**SIZE, **size}, reference=False)


def columns(trainer: PreferenceTrainer) -> list[list[float]]:
    return [rows[column][:] for rows in (trainer.train_dataset, trainer.eval_dataset) for column in COLUMNS]


def counts(trainer: PreferenceTrainer) -> tuple[int, int]:
    assert trainer.reference_cache is not None
    return trainer.reference_cache.found, trainer.reference_cache.computed


def forward_passes(trainer: PreferenceTrainer) -> list[int]:
    """Returns a list that gets the tokens of each forward pass from now on."""
    seen: list[int] = []
    embeddings = trainer.model.get_input_embeddings()
    embeddings.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0].numel()))
    return seen


@pytest.fixture
def recipe(tiny_models, tmp_path: Path) -> Callable[..., Recipe]:
    def make(**sections: dict[str, Any]) -> Recipe:
        train = {"tokens_per_micro_batch": 60, **sections.pop("train", {})}
        return small_recipe(tiny_models("llama"), tmp_path, train=train, **sections)

    return make


def test_what_was_computed_is_read_again(recipe, capsys: pytest.CaptureFixture[str]) -> None:
    cold = small_trainer(recipe(), **SIZE)
    distinct = {
        (*row["prompt_ids"], -1, *row[answer])
        for rows in (cold.train_dataset, cold.eval_dataset)
        for row in rows
        for answer in ("chosen_ids", "rejected_ids")
    }
    assert counts(cold) == (0, len(distinct))
    assert len(distinct) < 2 * (12 + 2), "pairs share answers, or this says little"
    said = f"Reference log-probs: 0 of {len(distinct)} sequences are in the cache; computing {len(distinct)}."
    assert said in " ".join(capsys.readouterr().err.split())

    warm = unfilled(recipe())
    seen = forward_passes(warm)
    fill_reference(warm, recipe())
    assert counts(warm) == (len(distinct), 0)
    assert len(seen) == 1, "the check alone"
    assert columns(warm) == columns(cold)


def test_runs_that_differ_in_the_training_share_it(recipe) -> None:
    small_trainer(recipe(), **SIZE)
    other = recipe(
        dpo={"beta": 0.7, "loss": "ipo"}, train={"learning_rate": 1.0, "epochs": 3, "tokens_per_micro_batch": 80}
    )
    found, computed = counts(small_trainer(other, count=6, per_question=3))
    assert computed == 0
    assert found > 0
    assert counts(small_trainer(other, count=15, per_question=3))[1] > 0


def test_every_sequence_is_computed_once_and_as_a_live_reference_does(recipe) -> None:
    whole = recipe(train={"tokens_per_micro_batch": 4096})
    trainer = unfilled(whole)
    seen = forward_passes(trainer)
    fill_reference(trainer, whole)
    prefixes = set()
    for rows in (trainer.train_dataset, trainer.eval_dataset):
        for row in rows:
            for answer in ("chosen_ids", "rejected_ids"):
                ids = [*row["prompt_ids"], *row[answer]]
                prefixes |= {tuple(ids[:end]) for end in range(1, len(ids) + 1)}
    assert len(seen) == 2, "one tree, and the check"
    assert seen[0] == len(prefixes)
    kept, live, _ = trainer.live_reference(range(12))
    assert (kept - live).abs().max() < 1e-4


@pytest.mark.parametrize("loss", get_args(Loss))
def test_each_loss_as_with_a_live_reference(loss: str, recipe) -> None:
    logs = {}
    for reference in ("cached", "live"):
        dpo = {"loss": loss, "reference": reference, "label_smoothing": 0.1 if loss == "exo_pair" else 0.0}
        train = {"tokens_per_micro_batch": None, "micro_batch_size": 2, "learning_rate": 1e-2, "max_steps": 3}
        trainer = small_trainer(recipe(dpo=dpo, train=train), **SIZE)
        trainer.train()
        logs[reference] = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert len(logs["live"]) == 3
    for cached, live in zip(logs["cached"], logs["live"], strict=True):
        for key in ("loss", "rewards/margins", "rewards/chosen"):
            assert cached[key] == pytest.approx(live[key], abs=2e-5, rel=1e-5), key


@pytest.mark.parametrize("trees", ["auto", "off"])
def test_ld_alpha_weighs_tokens_beyond_the_other_answer(trees: str, recipe) -> None:
    sums = columns(small_trainer(recipe(train={"trees": trees}), **SIZE))
    settings = {"dpo": {"ld_alpha": 0.25}, "train": {"trees": trees, "max_steps": 3}}
    trainer = small_trainer(recipe(**settings), **SIZE)
    assert counts(trainer)[0] == 0, "sums say nothing about tokens"
    kept, live, _ = trainer.live_reference(range(12))
    assert (kept - live).abs().max() < 1e-4
    assert any(abs(one - other) > 1 for one, other in zip(columns(trainer)[1], sums[1], strict=True))
    again = small_trainer(recipe(dpo={"ld_alpha": 1.0}, train={"trees": trees}), **SIZE)
    assert counts(again)[1] == 0, "tokens serve every ld_alpha"
    for found, expected in zip(columns(again), sums, strict=True):
        assert found == pytest.approx(expected, abs=1e-4)
    trainer.train()
    live_run = small_trainer(recipe(**{**settings, "dpo": {"ld_alpha": 0.25, "reference": "live"}}), **SIZE)
    live_run.train()
    losses = [[entry["loss"] for entry in one.state.log_history if "loss" in entry] for one in (trainer, live_run)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)


@pytest.mark.parametrize("architecture", ["gpt2", "gemma2", "gptj"])
def test_other_architectures(architecture: str, tiny_models, tmp_path: Path) -> None:
    recipe = small_recipe(tiny_models(architecture), tmp_path, train={"tokens_per_micro_batch": 60})
    kept, live, tokens = small_trainer(recipe, **SIZE).live_reference(range(12))
    assert (kept - live).abs().max() < 1e-4
    assert tokens.min() > 1


def test_half_precision_is_off_by_no_more_than_its_rounding(tiny_models, tmp_path: Path) -> None:
    recipe = small_recipe(tiny_models("llama"), tmp_path)
    half = recipe.model_copy(update={"model": recipe.model.model_copy(update={"dtype": "bfloat16"})})
    kept, live, _ = small_trainer(half, **SIZE).live_reference(range(12))
    exact = torch.tensor(columns(small_trainer(recipe, **SIZE))[:2])
    assert 0 < (kept - exact).abs().max() < 0.5
    assert (kept - live).abs().max() < 0.5


@pytest.mark.parametrize("damage", ["cut", "flipped"])
def test_a_damaged_file_is_computed_again(recipe, damage: str, capsys: pytest.CaptureFixture[str]) -> None:
    first = small_trainer(recipe(), **SIZE)
    (file,) = cache_folder().glob("reference/*/sums/*")
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content[:-1] if damage == "cut" else content)
    capsys.readouterr()
    second = small_trainer(recipe(), **SIZE)
    assert counts(second) == counts(first)
    assert columns(second) == columns(first)
    assert "is damaged; what it held is computed again" in " ".join(capsys.readouterr().err.split())


def test_values_of_another_model_stop_the_run(recipe) -> None:
    small_trainer(recipe(), **SIZE)
    folder = rewrite_sums(cache_folder(), lambda values: values - 0.5)
    with pytest.raises(UserError, match=r"one is 0\.5 nats off[\s\S]*Nothing was trained\. Delete") as caught:
        small_trainer(recipe(), **SIZE)
    assert str(folder) in str(caught.value)
    shutil.rmtree(folder)
    assert counts(small_trainer(recipe(), **SIZE))[0] == 0


def test_values_of_another_rounding_do_not(recipe) -> None:
    small_trainer(recipe(), **SIZE)
    rewrite_sums(cache_folder(), lambda values: values + 1e-3)
    assert counts(small_trainer(recipe(), **SIZE))[1] == 0


class StopError(Exception):
    pass


def test_a_pass_that_is_interrupted_keeps_what_it_has_computed(recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []

    def third_stops() -> None:
        calls.append(1)
        if len(calls) == 3:
            raise StopError

    with pytest.raises(StopError):
        fill_reference(unfilled(recipe()), recipe(), after_batch=third_stops)
    trainer = unfilled(recipe())
    batches: list[int] = []
    fill_reference(trainer, recipe(), after_batch=lambda: batches.append(1))
    found, computed = counts(trainer)
    assert found > 0
    assert computed > 0
    shutil.rmtree(cache_folder() / "reference")
    whole: list[int] = []
    fill_reference(unfilled(recipe()), recipe(), after_batch=lambda: whole.append(1))
    assert len(whole) - 3 <= len(batches) < len(whole)


def test_it_is_written_now_and_then(recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_FLUSH_SECONDS", 0.0)
    seen: list[int] = []
    folder = cache_folder() / "reference"
    fill_reference(
        unfilled(recipe()), recipe(), after_batch=lambda: seen.append(len(list(folder.glob("*/sums/*.safetensors"))))
    )
    assert len(seen) > 2
    assert seen == list(range(1, len(seen) + 1))


def test_a_run_reads_its_own_copy_first(recipe, tmp_path: Path) -> None:
    first, second, third = (unfilled(recipe()) for _ in range(3))
    fill_reference(first, recipe(), run_copy=tmp_path / "copy")
    rewrite_sums(cache_folder(), lambda values: values + 1e-4)  # as another run's rounding
    fill_reference(second, recipe(), run_copy=tmp_path / "copy")
    assert columns(second) == columns(first)
    shutil.rmtree(cache_folder() / "reference")
    fill_reference(third, recipe(), run_copy=tmp_path / "copy")
    assert columns(third) == columns(first)
    assert counts(third)[1] == 0
    assert not (cache_folder() / "reference").exists()


def test_what_is_not_this_reference_s_is_not_copied_to_the_run(recipe, tmp_path: Path) -> None:
    small_trainer(recipe(), **SIZE)
    rewrite_sums(cache_folder(), lambda values: values - 0.5)
    with pytest.raises(UserError, match="not this reference's"):
        fill_reference(unfilled(recipe()), recipe(), run_copy=tmp_path / "copy")
    assert not (tmp_path / "copy").exists()


def test_a_cache_that_cannot_be_written_stops_before_the_pass(
    recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LORA_DPO_CACHE", str(tmp_path / "file"))
    trainer = unfilled(recipe())
    seen = forward_passes(trainer)
    with pytest.raises(UserError, match="cannot be written: Not a directory"):
        fill_reference(trainer, recipe())
    assert seen == []


def test_a_model_that_cannot_be_known_is_computed_at_every_start(
    recipe, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    expected = columns(small_trainer(recipe(), **SIZE))
    shutil.rmtree(cache_folder() / "reference")
    monkeypatch.setattr(module, "reference_policy", lambda trainer, recipe: None)
    capsys.readouterr()
    trainer = unfilled(recipe())
    assert fill_reference(trainer, recipe()) is None
    assert columns(trainer) == expected
    assert not (cache_folder() / "reference").exists()
    assert "its reference log-probs are not kept on disk" in " ".join(capsys.readouterr().err.split())


def test_a_whole_model_s_reference_is_its_copy(recipe) -> None:
    settings = {"adapter": {"method": "full"}, "train": {"max_steps": 2, "learning_rate": 1e-2}}
    first = small_trainer(recipe(**settings), **SIZE)
    before = columns(first)
    first.train()
    second = small_trainer(recipe(**settings), **SIZE)
    assert counts(second)[1] == 0
    assert columns(second) == before
    adapted = small_trainer(recipe(), **SIZE)
    assert counts(adapted)[1] == 0, "the reference of a fresh adapter is the same base model"
    assert columns(adapted) == before


def test_an_evaluation_on_further_pairs_reads_it_too(recipe) -> None:
    trainer = small_trainer(recipe(), **SIZE)
    further = unfilled(recipe(), count=15).train_dataset
    trainer.evaluate(further)
    found, computed = counts(trainer)
    assert found > 0
    assert computed > 0
    trainer.evaluate(further)
    assert counts(trainer) == (found + computed, 0)


def test_broken_numbers_are_not_kept(recipe) -> None:
    trainer = unfilled(recipe())
    with torch.no_grad():
        trainer.model.get_base_model().model.norm.weight.fill_(float("nan"))
    fill_reference(trainer, recipe())
    assert all(value != value for value in columns(trainer)[0])
    assert list(cache_folder().glob("reference/*/sums/*")) == []
