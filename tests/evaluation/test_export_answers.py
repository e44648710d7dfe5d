from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest

from lora_dpo.data.chat import TokenisedPair
from lora_dpo.data.pair import Pair, group_of, user
from lora_dpo.errors import UserError
from lora_dpo.evaluation.evaluate import Subject
from lora_dpo.evaluation.export import Instruction
from lora_dpo.evaluation.export_answers import Export, held_out, how_to_judge, read_export, write_export
from lora_dpo.evaluation.work import Work
from lora_dpo.recipe.schema import EvaluationSection
from tests.evaluation.models import tiny_policies

OPTIONS = EvaluationSection(max_new_tokens=3, batch_size=2)
DIALOGUE = {"question_id": 81, "category": "writing", "turns": ["Why is the sky blue?", "Say it again."]}


def pair(*turns: str) -> TokenisedPair:
    said = [{"role": ("user", "assistant")[place % 2], "content": text} for place, text in enumerate(turns)]
    return TokenisedPair(Pair(tuple(said), "yes", "no", group_of(tuple(said))), [1], [2], [3])


@pytest.fixture
def subject(tiny_models) -> Subject:
    policies, encoder = tiny_policies(tiny_models("llama"))
    asked = [Pair(user(text), "yes", "no", group_of(user(text))) for text in ("Do bats see?", "Is glass slow?")]
    return Subject(policies, encoder, list(encoder.encode([*asked, asked[0]])), [])


def test_held_out_questions_are_asked_once_and_in_their_order(capfd) -> None:
    pairs = [pair("Why?"), pair("Who?", "He.", "Why he?"), pair("Where?"), pair("Why?")]
    assert held_out(pairs, "test.csv") == [Instruction("Why?", "test.csv"), Instruction("Where?", "test.csv")]
    assert "Left out: 1 conversations of several turns" in capfd.readouterr().err
    assert held_out(pairs[:1], "x") == [Instruction("Why?", "x")]
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("pairs", [[], [pair("Who?", "He.", "Why he?")]])
def test_without_a_question_there_is_nothing_to_export(pairs: list[TokenisedPair]) -> None:
    with pytest.raises(UserError, match=r"no held-out question of a single turn.*\n.*--data FILE, or .*--questions"):
        held_out(pairs, "x")


def test_held_out_questions_for_alpaca_eval(subject: Subject, tmp_path: Path) -> None:
    files = write_export(
        read_export("alpaca-eval", None), Work(), subject, tmp_path, OPTIONS, name="mine", dataset="facts"
    )
    assert files == [tmp_path / "alpaca_eval" / f"mine-{when}.json" for when in ("before", "after")]
    before, after = (json.loads(file.read_text()) for file in files)
    assert [row["instruction"] for row in before] == ["Do bats see?", "Is glass slow?"]
    assert {row["dataset"] for row in before} == {"facts"}
    assert before != after


def test_other_instructions_for_alpaca_eval(subject: Subject, tmp_path: Path) -> None:
    (tmp_path / "set.json").write_text(json.dumps([{"instruction": "Name a tree."}]))
    export = read_export("alpaca-eval", tmp_path / "set.json")
    files = write_export(export, Work(), subject, tmp_path, OPTIONS, name="mine", dataset="facts")
    (row,) = json.loads(files[0].read_text())
    assert (row["instruction"], row["dataset"]) == ("Name a tree.", "set")


def test_mt_bench(subject: Subject, tmp_path: Path) -> None:
    (tmp_path / "q.jsonl").write_text(json.dumps(DIALOGUE))
    export = read_export("mt-bench", tmp_path / "q.jsonl")
    before, after = write_export(export, Work(), subject, tmp_path, OPTIONS, name="mine", dataset="")
    assert before == tmp_path / "mt_bench" / "model_answer" / "mine-before.jsonl"
    assert len(json.loads(after.read_text())["choices"][0]["turns"]) == 2
    assert json.loads((tmp_path / "mt_bench" / "question.jsonl").read_text()) == DIALOGUE


def test_mt_bench_needs_its_questions() -> None:
    with pytest.raises(UserError, match=r"needs --questions FILE\.\n.*\nFetch .*question\.jsonl from https://github"):
        read_export("mt-bench", None)
    assert read_export("alpaca-eval", None) == Export("alpaca-eval")


def test_the_command_of_the_judge(tmp_path: Path) -> None:
    files = [Path(f"my runs/{when}.json") for when in ("before", "after")]
    words = shlex.split(how_to_judge("alpaca-eval", files))
    assert words == [
        "alpaca_eval",
        "--model_outputs",
        "my runs/after.json",
        "--reference_outputs",
        "my runs/before.json",
    ]
    said = how_to_judge("mt-bench", [tmp_path / "x-before.jsonl", tmp_path / "x-after.jsonl"])
    assert said.endswith("python gen_judgment.py --model-list x-before x-after")
    assert f"cp {tmp_path}/*.jsonl data/mt_bench/model_answer/" in said
