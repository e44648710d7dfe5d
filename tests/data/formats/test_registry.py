from __future__ import annotations

import pytest

from lora_dpo.data.formats.base import BadRowError, Options
from lora_dpo.data.formats.registry import FORMATS, mapped, recognise
from lora_dpo.errors import UserError
from lora_dpo.recipe.schema import Columns

ROW = {"frage": "Why?", "gut": "Because.", "schlecht": "No.", "sys": "Be kind.", "id": 7, "system": "unused"}


def test_unknown_columns_list_what_is_known():
    with pytest.raises(UserError) as caught:
        recognise([{"prompt": 1, "chosen": 2}, {"rejectd": 3}], "data.csv")
    message = str(caught.value)
    assert message.startswith("data.csv: the columns prompt, chosen, rejectd are no known preference format")
    assert "is 'rejectd' meant to be 'rejected'?" in message
    assert "data.columns: {prompt: ..., chosen: ..., rejected: ...}" in message
    for known in FORMATS:
        assert f"  {known.name}: {known.columns}" in message


def test_names_are_unique():
    assert len({known.name for known in FORMATS}) == len(FORMATS)


def test_one_odd_row_does_not_hide_the_format():
    assert (
        recognise([{"oops": 1}, {"prompt": "a", "chosen": "b", "rejected": "c"}], "x").name
        == "prompt, chosen, rejected"
    )


def test_mapped_columns():
    columns = Columns(prompt="frage", chosen="gut", rejected="schlecht", system="sys", group="id")
    (made,) = mapped(columns, [ROW], "x").convert(ROW, Options())
    assert [turn["content"] for turn in made.prompt] == ["Be kind.", "Why?"]
    assert (made.chosen, made.rejected, made.group) == ("Because.", "No.", "7")


def test_columns_that_are_not_mapped_are_not_read():
    (made,) = mapped(Columns(prompt="frage", chosen="gut", rejected="schlecht"), [ROW], "x").convert(ROW, Options())
    assert [turn["role"] for turn in made.prompt] == ["user"]


def test_mapped_column_that_is_not_there():
    with pytest.raises(UserError) as caught:
        mapped(Columns(prompt="frage", chosen="guut", rejected="schlecht"), [ROW], "data.csv")
    assert str(caught.value) == (
        "data.csv: data.columns.chosen is 'guut', but there is no such column\nDid you mean 'gut'?"
    )


def test_bad_mapped_row_names_the_mapping():
    known = mapped(Columns(prompt="frage", chosen="gut", rejected="schlecht"), [ROW], "x")
    with pytest.raises(BadRowError) as caught:
        known.convert(ROW | {"gut": None}, Options())
    assert str(caught.value) == "column 'chosen' is null (data.columns: prompt=frage, chosen=gut, rejected=schlecht)"
