from __future__ import annotations

import dataclasses
import json
import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_dpo.data.manifest import (
    pairs_hash,
    read_manifest,
    read_pairs,
    read_questions,
    split_manifest,
    write_manifest,
    write_pairs,
    write_questions,
)
from lora_dpo.data.pair import Pair, group_of, user
from lora_dpo.data.question import Question
from lora_dpo.errors import UserError

turns = st.tuples(
    st.lists(st.fixed_dictionaries({"role": st.sampled_from(["user", "assistant"]), "content": st.text()})),
    st.text(),
).map(lambda parts: (*parts[0], {"role": "user", "content": parts[1]}))
pairs = st.builds(
    Pair,
    turns,
    st.text(),
    st.text(),
    st.text(min_size=1),
    origin=st.text(),
    source=st.integers(min_value=0, max_value=9),
)


def splits_of(one: st.SearchStrategy) -> st.SearchStrategy:
    names = ("train", "validation", "test")
    return st.fixed_dictionaries({name: st.lists(one, min_size=int(name == "train"), max_size=4) for name in names})


answers = st.lists(st.text(), min_size=1, max_size=3).map(tuple)
questions = st.builds(
    Question,
    turns,
    answers,
    answers,
    *[st.text()] * 4,
    origin=st.text(),
    source=st.integers(min_value=0, max_value=9),
)
SKY = Question(
    user("Why?"), ("It is so", ""), ("No reason; none",), "It is so", "", "Sky", group_of(user("Why?")), "a.csv, line 2"
)


@given(splits=splits_of(pairs))
def test_pairs_come_back_as_they_were(tmp_path, splits):
    path = tmp_path / "data" / "pairs.jsonl"
    write_pairs(path, splits)
    found = read_pairs(path)
    assert found == splits
    for name, written in splits.items():
        assert [(p.origin, p.source) for p in found[name]] == [(p.origin, p.source) for p in written]
    assert [file.name for file in path.parent.iterdir()] == ["pairs.jsonl"]


def test_a_written_line_is_a_readable_row(tmp_path, pair):
    path = tmp_path / "pairs.jsonl"
    write_pairs(path, {"train": [pair("Où?", origin="a.csv, line 2")], "validation": [], "test": []})
    assert json.loads(path.read_text(encoding="utf-8")) == {
        "split": "train",
        "prompt": [{"role": "user", "content": "Où?"}],
        "chosen": "yes",
        "rejected": "no",
        "group": pair("Où?").group,
        "origin": "a.csv, line 2",
        "source": 0,
    }


@given(splits=splits_of(questions))
def test_questions_come_back_as_they_were(tmp_path, splits):
    path = tmp_path / "data" / "questions.jsonl"
    write_questions(path, splits)
    found = read_questions(path)
    assert found == splits
    for name, written in splits.items():
        assert [(q.origin, q.source) for q in found[name]] == [(q.origin, q.source) for q in written]


def question_line(**changes) -> str:
    values = {
        "split": "test",
        "prompt": [{"role": "user", "content": "Why?"}],
        "correct": ["It is so", ""],
        "incorrect": ["No reason; none"],
        "best": "It is so",
        "best_incorrect": "",
        "category": "Sky",
        "group": SKY.group,
        "origin": "a.csv, line 2",
        "source": 0,
    }
    return json.dumps({**values, **changes})


def test_a_written_question_is_a_readable_row(tmp_path):
    path = tmp_path / "questions.jsonl"
    write_questions(path, {"train": [], "validation": [], "test": [SKY]})
    assert path.read_text(encoding="utf-8") == question_line() + "\n"
    assert read_questions(path)["test"] == [SKY]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{}", "the line is no question of a split (KeyError: 'split')"),
        (question_line(split="tset"), "the line is no question of a split (KeyError: 'tset')"),
        (question_line(correct="It is so"), "(TypeError: correct is no list of texts)"),
        (question_line(incorrect=["No", None]), "(TypeError: incorrect is no list of texts)"),
        (question_line(prompt=3), "TypeError"),
        (question_line(catgory="Sky"), "unexpected keyword argument 'catgory'"),
        ('{"split": "test", "prompt": [], "correct": [], "incorrect": []}', "missing 4 required positional arguments"),
        ('{"split": "test"', "the line is not valid JSON"),
    ],
)
def test_damaged_questions(tmp_path, line, words):
    path = tmp_path / "questions.jsonl"
    path.write_text(f"{question_line()}\n{line}\n")
    with pytest.raises(UserError) as caught:
        read_questions(path)
    assert words in str(caught.value)
    assert caught.value.where == f"{path}, line 2"


def test_questions_that_are_not_there(tmp_path):
    with pytest.raises(UserError, match="there is no such file or folder"):
        read_questions(tmp_path / "questions.jsonl")


def test_manifest_round_trip(tmp_path, pair):
    found = {"train": [pair("b"), pair("a"), pair("a", "x")], "validation": [], "test": [pair("c")]}
    manifest = split_manifest(found)
    assert (manifest["train"]["pairs"], manifest["train"]["groups"]) == (3, 2)
    assert manifest["train"]["group_ids"] == sorted({pair("a").group, pair("b").group})
    assert manifest["validation"] == {"pairs": 0, "groups": 0, "hash": pairs_hash([]), "group_ids": []}
    write_manifest(tmp_path / "splits.json", manifest)
    assert read_manifest(tmp_path / "splits.json") == manifest


def test_hash_sees_every_content_and_no_order(pair):
    first, second = pair("a"), pair("b")
    base = pairs_hash([first, second])
    assert len(base) == 64
    assert pairs_hash(random.Random(0).sample([first, second], 2)) == pairs_hash([second, first]) == base
    assert pairs_hash([first, dataclasses.replace(second, origin="elsewhere", source=3)]) == base
    changed = [dataclasses.replace(second, **change) for change in (
        {"chosen": "x"}, {"rejected": "x"}, {"group": "x"}, {"prompt": ({"role": "user", "content": "b "},)},
        {"chosen": "no", "rejected": "yes"},
    )]  # fmt: skip
    hashes = {pairs_hash([first, other]) for other in changed} | {
        pairs_hash([first]),
        pairs_hash([first, second, second]),
    }
    assert base not in hashes
    assert len(hashes) == 7


@pytest.mark.parametrize(
    "line",
    ['{"prompt": "a"}', '{"split": "dev"}', '{"split": "train", "prompt": []}', '{"split": "train", "prompt": 3}', "["],
)
def test_damaged_pairs(tmp_path: Path, line):
    path = tmp_path / "pairs.jsonl"
    path.write_text(line + "\n")
    with pytest.raises(UserError) as caught:
        read_pairs(path)
    assert caught.value.where == f"{path}, line 1"


@pytest.mark.parametrize("text", [None, "", "{}", "[]", "3", '{"train": {}, "validation": {}, "test": {}}'])
def test_damaged_manifest(tmp_path: Path, text):
    path = tmp_path / "splits.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(UserError) as caught:
        read_manifest(path)
    assert caught.value.where == str(path)


def test_a_failed_write_leaves_the_old_file(tmp_path, pair):
    path = tmp_path / "pairs.jsonl"
    write_pairs(path, {"train": [pair("a")], "validation": [], "test": []})
    before = path.read_bytes()
    broken = dataclasses.replace(pair("b"), chosen="\ud800")
    with pytest.raises(UnicodeEncodeError):
        write_pairs(path, {"train": [pair("c"), broken], "validation": [], "test": []})
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
