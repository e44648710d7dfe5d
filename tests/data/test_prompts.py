from __future__ import annotations

import json
from pathlib import Path

import pytest

from lora_dpo.data.pair import user
from lora_dpo.data.prompts import PromptRow, read_prompts
from lora_dpo.errors import UserError


def read(folder: Path, name: str, text: str, **options) -> list[PromptRow]:
    file = folder / name
    file.write_text(text, encoding="utf-8")
    return read_prompts(str(file), key="--input", **options)


def lines(*rows: dict) -> str:
    return "\n".join(map(json.dumps, rows))


@pytest.mark.parametrize(
    ("row", "turns"),
    [
        ({"prompt": "Why?"}, user("Why?")),
        ({"question": "Why?", "answer": "So."}, user("Why?")),
        ({"Question": "Why?", "Category": "x"}, user("Why?")),
        ({"instruction": "Add", "input": "1 2"}, user("Add\n1 2")),
        ({"instruction": "Add", "input": ""}, user("Add")),
        ({"prompt": "Why?", "system": "Be brief."}, ({"role": "system", "content": "Be brief."}, *user("Why?"))),
        ({"prompt": list(user("Why?"))}, user("Why?")),
        ({"messages": [{"from": "human", "value": "Why?"}]}, user("Why?")),
        ({"prompt": "Why?", "question": "What?"}, user("Why?")),
    ],
)
def test_columns_that_hold_prompts(tmp_path: Path, row: dict, turns: tuple) -> None:
    (prompt,) = read(tmp_path, "in.jsonl", lines(row))
    assert prompt.turns == turns


def test_text_csv_and_json(tmp_path: Path) -> None:
    text = read(tmp_path, "in.txt", "Why?\n\n  What, then? \n")
    assert [(row.turns, row.origin) for row in text] == [
        (user("Why?"), f"{tmp_path}/in.txt, line 1"),
        (user("What, then?"), f"{tmp_path}/in.txt, line 3"),
    ]
    table = read(tmp_path, "in.csv", 'id,question\na,"Why, ""oh""?"\nb,What?\n')
    assert [(row.id, row.shown) for row in table] == [("a", 'Why, "oh"?'), ("b", "What?")]
    whole = read(tmp_path, "in.json", json.dumps([{"id": 7, "prompt": "Why?"}]))
    assert [(row.id, row.shown) for row in whole] == [(7, "Why?")]


def test_a_system_text_is_for_prompts_that_have_none(tmp_path: Path) -> None:
    rows = read(tmp_path, "in.jsonl", lines({"prompt": "A?", "system": "own"}, {"prompt": "B?"}), system="given")
    assert [row.turns[0]["content"] for row in rows] == ["own", "given"]
    assert rows[1].shown == [{"role": "system", "content": "given"}, {"role": "user", "content": "B?"}]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        (
            "in.jsonl",
            '{"promt": "Why?"}',
            "hold no prompts\nA prompt is in a column prompt, question, instruct",
        ),
        ("in.jsonl", '{"promt": "Why?"}', "Rename 'promt' to 'prompt'."),
        ("in.jsonl", '{"prompt": "Why?"}\n{"text": "x"}', "line 2: column 'prompt' is missing\nMend this row, or take"),
        ("in.jsonl", '{"prompt": "  "}', "line 1: the prompt is empty"),
        ("in.jsonl", '{"prompt": "Why?"}\n{"prompt": 3}', "line 2: column 'prompt' is 3, not a list of messages"),
        ("in.jsonl", '{"prompt": "Why?"}\n{"pro', "line 2: the line is not valid JSON"),
        ("in.jsonl", lines({"messages": [{"role": "assistant", "content": "Hi"}]}), "ends in a turn of the assistant"),
        ("in.csv", "prompt\n", "the file holds no rows below its header"),
        ("in.txt", "\n \n", "no row could be read"),
        ("in.txt", "", "no row could be read"),
        ("in.docx", "x", "is no known kind of data file"),
    ],
)
def test_files_that_cannot_be_read(tmp_path: Path, name: str, text: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        read(tmp_path, name, text)
    assert message in str(caught.value)
    assert "data.on_bad_row" not in str(caught.value)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("Why?")
    with pytest.raises(UserError, match=r"--input: there is no file or folder .*promts\.txt'\nDid you mean"):
        read_prompts(str(tmp_path / "promts.txt"), key="--input")
