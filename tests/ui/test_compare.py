from __future__ import annotations

import json
from pathlib import Path

import pytest

from lora_dpo.errors import UserError
from lora_dpo.inference.sampling import Sampling
from lora_dpo.ui.compare import Request, compare, questions_of
from lora_dpo.ui.questions import SCIENCE

DRAWN = Sampling(6, temperature=2.0)


@pytest.fixture
def questions(work: Path) -> Path:
    file = work / "q.txt"
    file.write_text("Do bats see?\nIs glass liquid?\n")
    return file


def compared(capsys: pytest.CaptureFixture[str], sampling: Sampling) -> dict:
    compare(Request("runs/small", sampling, "q.txt"), as_json=True)
    return json.loads(capsys.readouterr().out)


def test_as_json_the_answers_can_be_had_again(questions: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = compared(capsys, DRAWN)
    assert found["sampling"]["seed"] is not None
    assert compared(capsys, Sampling(**found["sampling"])) == found


def test_a_question_that_is_too_long_is_named_before_the_first_answer(
    questions: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    questions.write_text(questions.read_text() + "why? " * 600)
    monkeypatch.setattr("lora_dpo.inference.chat_model.ChatModel.answers", None)
    with pytest.raises(UserError, match=r"^question 3: A prompt of \d+ tokens leaves no room"):
        compare(Request("runs/small", DRAWN, "q.txt"), as_json=True)


def test_fewer_questions_than_wanted_are_told(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    count = len(SCIENCE.read_text().splitlines())  # the run holds out none
    assert len(questions_of(Request("runs/small", DRAWN, "200"))) == count
    assert f"--questions is 200, but there are {count}: all of them are asked." in capsys.readouterr().err
    assert len(questions_of(Request("runs/small", DRAWN, "2"))) == 2
    assert capsys.readouterr().err == ""
