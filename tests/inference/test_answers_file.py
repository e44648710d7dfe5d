from __future__ import annotations

import json
import uuid
from datetime import date
from pathlib import Path

import pytest

from lora_dpo.errors import UserError
from lora_dpo.inference.answers_file import check_place, open_answers, settings_file

SETTINGS = {"input": "a.jsonl", "count": 3, "model": "m", "temperature": 0.0}
LINES = [{"index": index, "answer": "naïve “é”\u2028"} for index in range(3)]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "out" / "answers.jsonl"


def started(path: Path, count: int, **options) -> None:
    with open_answers(path, SETTINGS, overwrite=False, **options) as file:
        file.append(LINES[:count])


def refusal(path: Path, settings: dict = SETTINGS) -> str:
    before = path.read_bytes()
    with pytest.raises(UserError) as caught, open_answers(path, settings, overwrite=False):
        pass
    assert path.read_bytes() == before
    return str(caught.value)


def test_it_goes_on_after_its_whole_lines(path: Path) -> None:
    started(path, 2)
    with path.open("a") as file:
        file.write('{"index": 2, "answ')  # killed while writing
    with open_answers(path, {**SETTINGS, "input": "elsewhere/a.jsonl"}, overwrite=False) as file:
        assert file.count == 2
        file.append(LINES[2:])
        assert file.count == 3
    assert [json.loads(line) for line in path.read_text().split("\n")[:-1]] == LINES
    assert sorted(file.name for file in path.parent.iterdir()) == ["answers.jsonl", "answers.jsonl.settings.json"]


def test_an_id_that_json_does_not_have_is_written_as_text(path: Path) -> None:
    with open_answers(path, SETTINGS, overwrite=False) as file:
        file.append([{"index": 0, "id": date(2026, 1, 31)}, {"index": 1, "id": uuid.UUID(int=1)}])
    found = [json.loads(line)["id"] for line in path.read_text().splitlines()]
    assert found == ["2026-01-31", "00000000-0000-0000-0000-000000000001"]


def test_other_settings_are_refused_with_what_differs(path: Path) -> None:
    started(path, 1)
    message = refusal(path, {**SETTINGS, "temperature": 0.7})
    assert f"{path} holds answers that were asked for otherwise, so it cannot go on with these.\ntemper" in message
    assert "\ntemperature: 0.0 there, 0.7 now\nTake the old values to go on, name another --output, or" in message
    assert json.loads(settings_file(path).read_text()) == SETTINGS
    with open_answers(path, {**SETTINGS, "temperature": 0.7}, overwrite=True) as file:
        assert file.count == 0
    assert json.loads(settings_file(path).read_text())["temperature"] == 0.7


def test_somebody_elses_file_is_left_alone(path: Path) -> None:
    path.parent.mkdir()
    path.write_text("thesis")
    assert refusal(path).startswith(f"{path} is there already, and nothing in it was touched.\nThere is no answers.jso")


@pytest.mark.parametrize("text", ['{"index": 1}\n', '{"index": 0}\n[]\n', "\n", '{"index": 0}\n' * 2])
def test_a_file_that_was_changed(path: Path, text: str) -> None:
    started(path, 1)
    path.write_text(text)
    assert f"{path} has been changed since it was written: " in refusal(path)


def test_two_at_once(path: Path) -> None:
    with open_answers(path, SETTINGS, overwrite=False) as file:
        file.append(LINES[:1])
        assert refusal(path).startswith(f"Another process is writing {path}.\nWait for it")
        file.append(LINES[1:])
    assert len(path.read_text().splitlines()) >= 3


def test_places_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for place, message in (
        (tmp_path, "is a folder, so"),
        (tmp_path / "file" / "a.jsonl", "file is a file, so"),
    ):
        with pytest.raises(UserError, match=message):
            check_place(place)
