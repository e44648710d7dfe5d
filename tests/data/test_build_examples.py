from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lora_dpo.data.build import prepare
from lora_dpo.data.build_examples import prepare_examples
from lora_dpo.data.chat import TurnEncoder
from lora_dpo.data.manifest import read_examples, read_manifest
from lora_dpo.data.pair import group_of
from lora_dpo.errors import UserError
from lora_dpo.recipe.schema import Recipe
from tests.tiny import tiny_tokenizer

COUNT = 40


def write(folder: Path, name: str, rows: list[dict[str, Any]]) -> str:
    file = folder / name
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(file)


def preferences(folder: Path, numbers: range = range(COUNT)) -> str:
    rows = [{"prompt": f"What is {n}?", "chosen": f"It is {n}.", "rejected": "Who knows?"} for n in numbers]
    return write(folder, f"pairs{numbers.start}.jsonl", rows)


def recipe(pairs: str, sft: Any, **more: Any) -> Recipe:
    values = {
        "model": {"name": "tiny"},
        "data": {"path": pairs, "split": {"test": 0.25, "validation": 0.1}, **more.pop("data", {})},
        "sft": {"path": sft, "max_length": 64, **more},
        "run": {"name": "r", "stage": "sft"},
    }
    return Recipe.model_validate(values)


def questions(splits: dict, name: str) -> set[str]:
    return {group_of(one.prompt) for one in splits[name]}


def test_chosen_answers_of_the_preferences_are_divided_as_these_are(tmp_path: Path) -> None:
    file, tokenizer = preferences(tmp_path), tiny_tokenizer("llama")
    taught, pairs = prepare_examples(recipe(file, file), tokenizer), prepare(recipe(file, file), tokenizer)
    for split in ("train", "validation", "test"):
        assert questions(taught.untokenised, split) == questions(pairs.untokenised, split)
    assert {one.example.answer for one in taught.splits["train"]} <= {f"It is {n}." for n in range(COUNT)}
    assert list(taught.summary()) == [
        "examples", "groups", "splits", "dropped", "truncated", "overlap", "near_duplicates",
    ]  # fmt: skip
    assert taught.summary()["examples"] == COUNT


def test_what_the_preferences_hold_out_is_held_out_here_too(tmp_path: Path) -> None:
    """Of other sizes, the two sets would be cut elsewhere in the same order."""
    data = preferences(tmp_path, range(10, 30))
    answers = write(
        tmp_path,
        "answers.jsonl",
        [{"question": f"what is {n}", "answer": f"{n}."} for n in range(COUNT)],  # other spelling, the same questions
    )
    tokenizer = tiny_tokenizer("llama")
    taught, pairs = prepare_examples(recipe(data, answers), tokenizer), prepare(recipe(data, answers), tokenizer)
    assert questions(pairs.untokenised, "test") <= questions(taught.untokenised, "test")
    assert not questions(pairs.untokenised, "validation") & questions(taught.untokenised, "train")
    assert taught.overlap == 0
    only = prepare_examples(recipe(data, [{"path": answers, "use": "train"}]), tokenizer)
    assert only.summary()["splits"]["test"]["examples"] == 0
    held_out = sum(pairs.summary()["splits"][split]["groups"] for split in ("validation", "test"))
    assert only.dropped == {"overlap": held_out}


def test_preferences_that_are_not_there_yet_hold_nothing_out(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    answers = write(tmp_path, "answers.jsonl", [{"question": f"What is {n}?", "answer": "So."} for n in range(20)])
    taught = prepare_examples(recipe(str(tmp_path / "later.csv"), answers), tiny_tokenizer("llama"))
    assert taught.summary()["splits"]["test"]["examples"] == 5
    said = " ".join(capsys.readouterr().err.split())
    assert "it is not known which questions the DPO stage will hold out" in said


def test_a_conversation_is_on_one_side_and_its_answers_are_those_that_dpo_scores(tmp_path: Path) -> None:
    def turns(n: int) -> list[dict[str, str]]:
        texts = (f"What is {n}?", f"It is {n}.", "Sure?", "Quite sure.")
        return [{"role": ("user", "assistant")[place % 2], "content": text} for place, text in enumerate(texts)]

    talks = write(tmp_path, "talks.jsonl", [{"messages": turns(n)} for n in range(20)])
    tokenizer = tiny_tokenizer("gemma2")
    taught = prepare_examples(recipe(preferences(tmp_path, range(100, 120)), talks), tokenizer)
    assert taught.summary()["examples"] == 40
    assert taught.summary()["groups"] == 20
    assert taught.overlap == 0
    encoder = TurnEncoder(tokenizer)
    for one in taught.splits["train"]:
        ((prompt, answer),) = encoder.encode_answers(one.prompt, [one.answer])
        assert (one.prompt_ids, one.answer_ids) == (prompt, answer)
        assert one.answer_ids[-1] == encoder.end_of_turn_id
        assert one.prompt_ids[0] == tokenizer.bos_token_id != one.prompt_ids[1]


def test_what_teaches_nothing_is_counted_and_dropped(tmp_path: Path) -> None:
    rows = [{"question": f"What is {n}?", "answer": "So."} for n in range(20)]
    rows += [rows[0], {"question": "Why?", "answer": " "}, {"question": " ", "answer": "So."}]
    rows += [{"question": "Long?", "answer": "so " * 200}, {"question": "No?", "answer": "x", "label": False}]
    rows += [{"question": "Null?", "answer": None}]
    answers = write(tmp_path, "answers.jsonl", rows)
    with pytest.raises(UserError, match=r"answers.jsonl, line 26: column 'answer' is null"):
        prepare_examples(recipe("bundled/misconceptions", answers), tiny_tokenizer("llama"))
    skipping = recipe("bundled/misconceptions", answers, data={"on_bad_row": "skip"})
    taught = prepare_examples(skipping, tiny_tokenizer("llama"))
    assert taught.dropped == {"duplicate": 1, "empty": 2, "over_length": 1, "no_answer": 1, "bad_row": 1}
    assert taught.summary()["examples"] == 20


def test_files_round_trip(tmp_path: Path) -> None:
    taught = prepare_examples(recipe("bundled/misconceptions", preferences(tmp_path)), tiny_tokenizer("llama"))
    taught.write(tmp_path / "data")
    assert read_examples(tmp_path / "data" / "examples.jsonl") == taught.untokenised
    manifest = read_manifest(tmp_path / "data" / "splits.json")
    assert manifest["test"]["examples"] == 10
    assert manifest["test"]["hash"] == taught.summary()["splits"]["test"]["hash"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the file is empty"),
        ('{"question": "q"}\n', "the columns question are no known format of answers"),
        ('{"messages": [{"role": "user", "content": "q"}]}\n', "has no turn of the assistant"),
        ('{"messages": [{"role": "assistant", "content": "a"}]}\n', "the prompt has no turn"),
    ],
)
def test_bad_files(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "bad.jsonl").write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=message):
        prepare_examples(recipe("bundled/misconceptions", str(tmp_path / "bad.jsonl")), tiny_tokenizer("llama"))


def test_a_missing_file_is_named_with_its_key(tmp_path: Path) -> None:
    (tmp_path / "answers.csv").write_text("question,answer\nq,a\n")
    with pytest.raises(UserError, match="^sft.path: there is no file or folder .*\nDid you mean '.*answers.csv'"):
        prepare_examples(recipe("bundled/misconceptions", str(tmp_path / "answer.csv")), tiny_tokenizer("llama"))


def test_everything_too_long_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"sft.max_length 5 is shorter than every prompt"):
        prepare_examples(recipe("bundled/misconceptions", preferences(tmp_path), max_length=5), tiny_tokenizer("llama"))
