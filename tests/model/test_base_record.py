from __future__ import annotations

from pathlib import Path

import pytest

from lora_dpo.errors import UserError
from lora_dpo.model.base_record import recorded_base_hash, write_base_record


def test_what_is_written_is_read(tmp_path: Path) -> None:
    assert recorded_base_hash(str(tmp_path)) is None
    write_base_record(tmp_path, {"name": "org/base", "revision": None, "weights_sha256": "ab" * 32})
    assert recorded_base_hash(str(tmp_path)) == "ab" * 32


@pytest.mark.parametrize("text", ["{", "[]", '{"name": "org/base"}'])
def test_a_damaged_one_is_no_missing_one(text: str, tmp_path: Path) -> None:
    (tmp_path / "base_model.json").write_text(text)
    with pytest.raises(UserError, match=r"base_model\.json: the file does not say what the base was"):
        recorded_base_hash(str(tmp_path))
