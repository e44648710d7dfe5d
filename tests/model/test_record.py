from __future__ import annotations

from pathlib import Path

import pytest

from lora_dpo.errors import UserError
from lora_dpo.model.record import RECORD, read_record, write_record


def test_what_is_written_is_read(tmp_path: Path) -> None:
    assert read_record(tmp_path) is None
    record = {"model": {"name": "org/base", "revision": None, "weights_sha256": "ab" * 32}}
    write_record(tmp_path, record)
    assert read_record(tmp_path) == record


@pytest.mark.parametrize("text", ["{", "[]", '{"model": {"name": "org/base"}}'])
def test_a_damaged_one_is_no_missing_one(text: str, tmp_path: Path) -> None:
    (tmp_path / RECORD).write_text(text)
    with pytest.raises(UserError, match=r"provenance\.json: the file does not say what the base was"):
        read_record(tmp_path)
