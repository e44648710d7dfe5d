from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from lora_dpo.data.build import prepare, prepare_test
from lora_dpo.data.manifest import read_manifest, read_pairs, read_questions
from lora_dpo.data.pair import normalised
from lora_dpo.data.sources import load_pairs
from lora_dpo.errors import UserError
from lora_dpo.recipe.schema import DataSection, Recipe
from tests.conftest import REPOSITORY
from tests.tiny import CORPUS, tiny_tokenizer

BUNDLED = list(csv.DictReader(CORPUS.open(encoding="utf-8", newline="")))


def recipe(tmp_path: Path, **data) -> Recipe:
    return Recipe.model_validate(
        {"model": {"name": "tiny"}, "data": data, "dpo": {"max_length": 128}, "run": {"name": "r"}}
    )


def answers(cell: str) -> list[str]:
    return [answer.strip() for answer in cell.split(";") if answer.strip()]


def test_bundled_questions_are_many_and_varied() -> None:
    assert len(BUNDLED) >= 150
    assert len({normalised(row["Question"]) for row in BUNDLED}) == len(BUNDLED)
    assert len({row["Category"] for row in BUNDLED}) >= 12
    for row in BUNDLED:
        right, wrong = answers(row["Correct Answers"]), answers(row["Incorrect Answers"])
        assert len(right) >= 2, row["Question"]
        assert len(wrong) >= 3, row["Question"]
        assert row["Best Answer"] in right
        assert row["Best Incorrect Answer"] in wrong
        assert not {normalised(text) for text in right} & {normalised(text) for text in wrong}


def test_bundled_questions_are_not_truthfulqa_s() -> None:
    file = REPOSITORY.parent / "shared" / "data" / "truthfulqa" / "TruthfulQA.csv"
    if not file.is_file():
        pytest.skip(f"needs {file}")
    theirs = {normalised(row["Question"]) for row in csv.DictReader(file.open(encoding="utf-8", newline=""))}
    assert len(theirs) > 700
    assert not theirs & {normalised(row["Question"]) for row in BUNDLED}


@pytest.mark.parametrize(
    ("pairs", "expected"),
    [
        ("best", len(BUNDLED)),
        ("all", sum(len(answers(r["Correct Answers"])) * len(answers(r["Incorrect Answers"])) for r in BUNDLED)),
        ({"sample": 3}, 3 * len(BUNDLED)),
    ],
    ids=["best", "all", "sample"],
)
def test_bundled_pairs(pairs, expected: int) -> None:
    loaded = load_pairs(DataSection.model_validate({"pairs": pairs}))
    assert len(loaded.by_source[0]) == expected
    assert len({pair.group for pair in loaded.by_source[0]}) == len(BUNDLED)


def test_splits_are_by_question_and_in_order(tmp_path: Path) -> None:
    prepared = prepare(recipe(tmp_path, pairs="all"), tiny_tokenizer("gpt2"))
    assert list(prepared.splits) == ["train", "validation", "test"]
    groups = {split: {pair.pair.group for pair in pairs} for split, pairs in prepared.splits.items()}
    # 20 % and 10 % of the questions, rounded.
    assert len(groups["test"]) == round(0.2 * len(BUNDLED))
    assert len(groups["validation"]) == round(0.1 * len(BUNDLED))
    assert sum(map(len, groups.values())) == len(set().union(*groups.values())) == len(BUNDLED)
    assert prepared.overlap == 0
    assert prepared.formats == "TruthfulQA (CSV)"


def test_summary_keys_are_stable(tmp_path: Path) -> None:
    prepared = prepare(recipe(tmp_path), tiny_tokenizer("gpt2"))
    summary = prepared.summary()
    assert list(summary) == [
        "pairs", "groups", "splits", "questions", "dropped", "truncated", "overlap", "near_duplicates",
    ]  # fmt: skip
    assert {split: list(entry) for split, entry in summary["splits"].items()} == dict.fromkeys(
        ("train", "validation", "test"), ["pairs", "groups", "hash"]
    )
    assert summary["pairs"] == summary["groups"] == len(BUNDLED)
    assert sum(entry["pairs"] for entry in summary["splits"].values()) == len(BUNDLED)
    assert summary["questions"] == {split: entry["groups"] for split, entry in summary["splits"].items()}
    json.dumps(summary)


def test_what_is_left_out_is_counted(tmp_path: Path) -> None:
    rows = [{"prompt": f"How much is {n} and {n}?", "chosen": str(2 * n), "rejected": "?"} for n in range(20)]
    rows.append(dict(rows[0]))  # duplicate
    rows.append({**rows[1], "rejected": "2"})  # identical
    rows.append({**rows[2], "rejected": "far too long " * 60})
    rows.append({"prompt": "no answers"})
    file = tmp_path / "data.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    prepared = prepare(recipe(tmp_path, path=str(file), on_bad_row="skip"), tiny_tokenizer("gpt2"))
    assert prepared.dropped == Counter(duplicate=1, identical=1, over_length=1, bad_row=1)
    assert prepared.summary()["dropped"] == {"duplicate": 1, "identical": 1, "bad_row": 1, "over_length": 1}
    assert prepared.summary()["pairs"] == 20


def test_a_split_that_does_not_fit_is_named(tmp_path: Path) -> None:
    short = {"prompt": "Short?", "chosen": "yes", "rejected": "no"}
    rows = [{"prompt": f"Question {n}?", "chosen": "yes", "rejected": "no " * 200} for n in range(10)]
    sources = []
    for name, content in (("train", [short]), ("test", rows)):
        file = tmp_path / f"{name}.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in content), encoding="utf-8")
        sources.append({"path": str(file), "use": name})
    given = recipe(tmp_path, path=sources, split={"test": 0, "validation": 0})
    with pytest.raises(UserError, match=r"Every pair of the test split is longer than dpo\.max_length 128"):
        prepare(given, tiny_tokenizer("gpt2"))


def test_files_say_what_was_prepared(tmp_path: Path) -> None:
    prepared = prepare(recipe(tmp_path), tiny_tokenizer("gemma2"))
    prepared.write(tmp_path / "data")
    pairs = read_pairs(tmp_path / "data" / "pairs.jsonl")
    assert pairs == {split: [pair.pair for pair in own] for split, own in prepared.splits.items()}
    manifest = read_manifest(tmp_path / "data" / "splits.json")
    assert {split: entry["hash"] for split, entry in manifest.items()} == {
        split: entry["hash"] for split, entry in prepared.summary()["splits"].items()
    }


def mc_row(number: int, *, wrong: str = "No") -> dict:
    targets = {"Yes": 1, wrong: 0}
    return {"question": f"Is {number} a number?", "mc1_targets": targets, "mc2_targets": {"": 1, **targets}}


def test_questions_are_divided_with_their_pairs(tmp_path: Path) -> None:
    prepared = prepare(recipe(tmp_path, pairs="all", limit=200), tiny_tokenizer("gpt2"))
    assert sum(map(len, prepared.questions.values())) > 10
    answers_of = {row["Question"]: row for row in BUNDLED}
    for split, questions in prepared.questions.items():
        assert {question.group for question in questions} == {pair.pair.group for pair in prepared.splits[split]}
        for question in questions:
            row = answers_of[question.prompt[0]["content"]]
            assert list(question.correct) == answers(row["Correct Answers"])
            assert list(question.incorrect) == answers(row["Incorrect Answers"])
            assert (question.best, question.best_incorrect) == (row["Best Answer"], row["Best Incorrect Answer"])
            assert question.category == row["Category"]
    prepared.write(tmp_path / "data")
    assert read_questions(tmp_path / "data" / "questions.jsonl") == prepared.questions


def test_folds_ask_every_question_once(tmp_path: Path) -> None:
    tests = []
    for fold in (1, 2, 3):
        split = {"folds": 3, "fold": fold, "validation": 0.1}
        prepared = prepare(recipe(tmp_path, split=split), tiny_tokenizer("gpt2"))
        assert prepared.overlap == 0
        tests += [question.group for question in prepared.questions["test"]]
    assert len(tests) == len(set(tests)) == len(BUNDLED)


def test_questions_that_lose_all_pairs(tmp_path: Path, jsonl) -> None:
    """They are left out with their pairs, unless they are there for testing only."""
    long = "No " * 200
    train = jsonl([mc_row(n) for n in range(5)] + [mc_row(9, wrong=long)], "train.jsonl")
    test = jsonl([mc_row(n) for n in range(4, 8)] + [mc_row(8, wrong=long)], "test.jsonl")
    sources = [{"path": str(train), "use": "train"}, {"path": str(test), "use": "test"}]
    prepared = prepare(recipe(tmp_path, path=sources), tiny_tokenizer("gpt2"))
    found = {
        split: [(question.prompt[0]["content"], question.source) for question in questions]
        for split, questions in prepared.questions.items()
    }
    assert found == {
        "train": [(f"Is {n} a number?", 0) for n in range(4)],  # not 4, which is tested, nor 9, which is too long
        "validation": [],
        "test": [(f"Is {n} a number?", 1) for n in range(4, 9)],
    }
    assert prepared.questions["test"][0].correct == ("", "Yes")
    assert prepared.dropped == Counter(duplicate=1, over_length=2)


def test_data_without_questions_has_no_such_file(tmp_path: Path, jsonl) -> None:
    rows = [{"prompt": f"How much is {n} and {n}?", "chosen": str(2 * n), "rejected": "?"} for n in range(20)]
    prepared = prepare(recipe(tmp_path, path=str(jsonl(rows))), tiny_tokenizer("gpt2"))
    assert prepared.questions == {"train": [], "validation": [], "test": []}
    prepared.write(tmp_path / "data")
    assert sorted(file.name for file in (tmp_path / "data").iterdir()) == ["pairs.jsonl", "splits.json"]


def test_same_splits_and_tokens_in_every_process(tmp_path: Path) -> None:
    """Ranks prepare the data each for themselves, so hash seeds and set orders must not matter."""
    script = (
        "import json; from pathlib import Path; from tests.data.test_build import recipe; "
        "from lora_dpo.data.build import prepare; from tests.tiny import tiny_tokenizer; "
        "p = prepare(recipe(Path(), pairs={'sample': 2}, limit=60), tiny_tokenizer('qwen3')); "
        "print(json.dumps([p.summary(), [t.chosen_ids for s in p.splits.values() for t in s]]))"
    )
    outputs = []
    for seed in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(REPOSITORY)}
        done = subprocess.run(
            [sys.executable, "-c", script], capture_output=True, text=True, check=True, env=environment, cwd=REPOSITORY
        )
        outputs.append(json.loads(done.stdout.splitlines()[-1]))
    assert outputs[0] == outputs[1]
    assert 50 <= outputs[0][0]["pairs"] <= 62


def test_a_test_set_is_all_test(tmp_path: Path) -> None:
    source = {"path": "bundled/misconceptions", "use": "test"}
    prepared = prepare_test(recipe(tmp_path, path=[source], pairs="all"), tiny_tokenizer("gemma2"))
    counts = prepared.summary()
    assert {split: part["groups"] for split, part in counts["splits"].items()} == {
        "train": 0,
        "validation": 0,
        "test": len(BUNDLED),
    }
    assert counts["questions"] == {"train": 0, "validation": 0, "test": len(BUNDLED)}
    expected = prepare(recipe(tmp_path, pairs="all"), tiny_tokenizer("gemma2")).summary()
    assert (counts["pairs"], counts["dropped"]) == (expected["pairs"], expected["dropped"])
    with pytest.raises(UserError, match="the train split would be empty"):
        prepare(recipe(tmp_path, path=[source]), tiny_tokenizer("gemma2"))


def test_a_test_set_of_which_nothing_is_usable_is_refused(jsonl, tmp_path: Path) -> None:
    rows = [{"prompt": "Why?", "chosen": "So.", "rejected": " So. "}, {"prompt": "Who?", "chosen": "", "rejected": "I"}]
    source = {"path": str(jsonl(rows)), "use": "test"}
    with pytest.raises(UserError) as caught:
        prepare_test(recipe(tmp_path, path=[source]), tiny_tokenizer("gemma2"))
    assert str(caught.value).startswith(f"{source['path']}: the test set holds no usable pair\nLeft out: 1 ")
    assert "1 identical" in caught.value.why
    assert "1 empty" in caught.value.why
