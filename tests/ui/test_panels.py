from __future__ import annotations

import io

import pytest
from rich.console import Console

from lora_dpo.data.pair import user
from lora_dpo.ui.panels import answers_panel, cut_text, question_panel


def printed(thing, width: int) -> list[str]:
    console = Console(file=io.StringIO(), width=width, color_system=None)
    console.print(thing)
    return console.file.getvalue().splitlines()


@pytest.mark.parametrize(("width", "beside"), [(80, True), (72, True), (71, False), (40, False)])
def test_answers_stand_side_by_side_where_there_is_room(width: int, beside: bool) -> None:
    lines = printed(answers_panel(("left", "right"), ("word " * 30, "[bold]other[/bold]\x1b[31m\x07"), width), width)
    assert any("left" in line and "right" in line for line in lines) == beside
    assert max(map(len, lines)) <= width
    text = "\n".join(lines)
    assert "[bold]other[/bold][31m" in text.replace("│\n│ ", "")
    assert "\x1b" not in text


def test_what_was_said_before_stands_above_the_question() -> None:
    turns = ({"role": "system", "content": "Be short."}, *user("Do bats see?\x1b[2J"))
    assert [line.strip() for line in printed(question_panel(turns, "Question 1 of 2"), 60)] == [
        "Question 1 of 2", "system: Be short.", "Do bats see?[2J"
    ]  # fmt: skip


def test_an_answer_that_was_cut_says_so() -> None:
    assert cut_text("Yes", ended=True) == "Yes"
    assert cut_text("Yes, and", ended=False) == "Yes, and ... (cut)"
    assert "(an empty answer)" in "".join(printed(answers_panel("ab", ("", "x"), 80), 80))
