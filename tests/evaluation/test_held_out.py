from __future__ import annotations

import json
from pathlib import Path

import pytest

from lora_dpo.data.manifest import read_manifest, read_pairs
from lora_dpo.errors import UserError
from lora_dpo.evaluation.held_out import UNKNOWN_TRAINING, other_data, own_data
from lora_dpo.model.base import load_tokenizer
from lora_dpo.recipe.for_evaluation import recipe_of_run, recipe_of_stranger
from lora_dpo.recipe.run_folder import RunFolder
from lora_dpo.recipe.schema import ModelSection


def rows(*prompts: str) -> str:
    """Writes a file of pairs, and returns its name."""
    lines = [json.dumps({"prompt": prompt, "chosen": "Yes, it is.", "rejected": "No."}) for prompt in prompts]
    Path("test.jsonl").write_text("\n".join(lines))
    return "test.jsonl"


def on(run: RunFolder, data: str, *overrides: str):
    recipe = recipe_of_run(run.load_recipe(), data, overrides)
    return other_data(recipe, load_tokenizer(recipe.model), run)


def question(run: RunFolder, split: str) -> str:
    return read_pairs(run.data / "pairs.jsonl")[split][0].prompt[-1]["content"]


def test_a_run_s_own_test_split(trained: RunFolder) -> None:
    recipe = trained.load_recipe()
    held_out = own_data(trained, recipe, load_tokenizer(recipe.model))
    expected = read_pairs(trained.data / "pairs.jsonl")["test"]
    assert [pair.pair for pair in held_out.pairs] == expected
    assert len(expected) == 5
    assert {one.group for one in held_out.questions} == {pair.group for pair in expected}
    assert held_out.counts == json.loads(trained.report_json.read_text())["data"]
    assert held_out.caveats[0].startswith("It was trained on 17 other questions of the same data")
    trained.report_json.unlink()  # a checkpoint is measured while the run goes on
    unfinished = own_data(trained, recipe, load_tokenizer(recipe.model))
    assert unfinished.counts["splits"] == held_out.counts["splits"]
    assert unfinished.pairs == held_out.pairs


def test_a_test_split_that_was_trained_on_is_refused(trained: RunFolder) -> None:
    file = trained.data / "splits.json"
    manifest = read_manifest(file)
    manifest["test"]["group_ids"][:2] = manifest["train"]["group_ids"][:2]
    file.write_text(json.dumps(manifest))
    recipe = trained.load_recipe()
    with pytest.raises(UserError, match="2 held-out questions of runs/small stand in its training data too"):
        own_data(trained, recipe, load_tokenizer(recipe.model))


def test_another_test_set_is_read_whole(trained: RunFolder) -> None:
    held_out = on(trained, rows("Is rain wet?", "Is snow cold?", "Is snow cold?"))
    assert [pair.pair.prompt[0]["content"] for pair in held_out.pairs] == ["Is rain wet?", "Is snow cold?"]
    assert held_out.counts["splits"]["test"]["pairs"] == 2
    assert held_out.counts["dropped"] == {"duplicate": 1}
    assert held_out.caveats == []


def test_questions_come_with_all_their_answers(trained: RunFolder) -> None:
    text = (
        "Question,Best Answer,Correct Answers,Incorrect Answers,Category,Source\nIs rain wet?,Yes,Yes; Very,No; Dry,x,y"
    )
    Path("test.csv").write_text(text)
    held_out = on(trained, "test.csv", "data.pairs=all")
    assert [one.correct for one in held_out.questions] == [("Yes", "Very")]
    assert len(held_out.pairs) == 4


@pytest.mark.parametrize("split", ["train", "validation"])
def test_questions_of_the_training_are_refused_and_not_dropped(split: str, trained: RunFolder) -> None:
    met = question(trained, split)
    with pytest.raises(UserError) as caught:
        on(trained, rows("Is rain wet?", f"  {met.upper()}  ", met))
    begin = "1 of the 2 questions of the test set stand in the training data of runs/small, such as '"
    assert caught.value.what == f"{begin}{met}'."
    assert "Take these questions out of the file" in caught.value.fix


def test_questions_of_the_run_s_own_test_split_may_be_asked_again(trained: RunFolder) -> None:
    assert len(on(trained, rows(question(trained, "test"))).pairs) == 1


def test_a_question_nearly_the_same_is_said(trained: RunFolder) -> None:
    met = max((pair.prompt[0]["content"] for pair in read_pairs(trained.data / "pairs.jsonl")["train"]), key=len)
    (caveat,) = on(trained, rows("Is rain wet?", f"{met} So?")).caveats
    assert caveat == f"1 question is nearly the same text as a question that was trained on: '{met} So?' and '{met}'."


def test_a_training_that_is_unknown_is_said(tiny_models, trained: RunFolder) -> None:
    base = ModelSection(name=str(tiny_models("llama")))
    recipe = recipe_of_stranger("x", base, "lora", rows(question(trained, "train")), [])
    held_out = other_data(recipe, load_tokenizer(base), None)
    assert (len(held_out.pairs), held_out.caveats) == (1, [UNKNOWN_TRAINING])


def test_a_run_that_went_on_from_an_adapter_says_so(trained: RunFolder) -> None:
    recipe = recipe_of_run(trained.load_recipe(), rows("Is rain wet?"), [])
    recipe = recipe.model_copy(update={"adapter": recipe.adapter.model_copy(update={"init_from": "org/first"})})
    held_out = other_data(recipe, load_tokenizer(recipe.model), trained)
    assert held_out.caveats == ["It goes on from org/first, whose own training data was not looked at."]


def test_pairs_are_bounded_by_the_model_s_positions(tiny_models, trained: RunFolder) -> None:
    base = ModelSection(name=str(tiny_models("gpt2")))
    recipe = recipe_of_stranger("x", base, "lora", rows("Is rain wet?", "Is it? " * 300), [])
    assert recipe.dpo.max_length == 1024 > 512
    held_out = other_data(recipe, load_tokenizer(base), None)
    assert (len(held_out.pairs), held_out.counts["dropped"]) == (1, {"over_length": 1})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "there is no file or folder 'test.jsonl'"),
        ("", "the file is empty"),
        ("\n\n", "holds no rows"),
        ('{"prompt": "Why?", "chosen": "So.", "rejected": "So."}', "the test set holds no usable pair"),
        ('{"a": 1}', "are no known preference format"),
        ("{", "test.jsonl"),
    ],
)
def test_a_test_set_that_cannot_be_used(content: str | None, message: str, trained: RunFolder) -> None:
    if content is not None:
        Path("test.jsonl").write_text(content)
    with pytest.raises(UserError, match=message):
        on(trained, "test.jsonl")
