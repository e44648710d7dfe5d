from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from lora_dpo.errors import UserError
from lora_dpo.training import reference_store
from lora_dpo.training.reference_policy import ReferencePolicy
from lora_dpo.training.reference_store import Entries, ReferenceStore
from lora_dpo.tree.ragged import Ragged
from lora_dpo.tree.sequences import KEY

POLICY = ReferencePolicy({"weights": "abc", "adapter": None})


def entries(values: dict[bytes, list[float]]) -> Entries:
    keys = sorted(values)
    lengths = np.array([len(values[key]) for key in keys], np.int64)
    flat = np.array([value for key in keys for value in values[key]], np.float32)
    return Entries(np.array([key.ljust(32, b"\0") for key in keys], KEY), Ragged(flat, lengths))


def as_dict(found: Entries) -> dict[bytes, list[float]]:
    return {bytes(key): values.tolist() for key, values in zip(found.keys, found.values.split(), strict=True)}


@pytest.fixture
def store(tmp_path: Path) -> ReferenceStore:
    return ReferenceStore(tmp_path / "reference", POLICY, per_token=False)


def files(store: ReferenceStore) -> list[Path]:
    return sorted(store.folder.glob("*/*"))


def test_what_is_written_is_read_to_the_last_bit(store: ReferenceStore) -> None:
    assert as_dict(store.read()) == {}
    store.write(entries({b"a": [-1 / 3], b"b": [-1e-30]}))
    store.write(entries({b"c": [-2 / 3]}))
    third, two_thirds = np.float32(-1 / 3).item(), np.float32(-2 / 3).item()
    assert as_dict(store.read()) == {b"a": [third], b"b": [np.float32(-1e-30).item()], b"c": [two_thirds]}
    assert len(files(store)) == 2


def test_keys_may_end_on_zeros(store: ReferenceStore) -> None:
    written = entries({b"": [-1.0], b"\0\0a": [-2.0], b"b\0c": [-3.0]})
    store.write(written)
    assert store.read().find(written.keys).tolist() == [0, 1, 2]


def test_sums_and_tokens_are_apart(store: ReferenceStore, tmp_path: Path) -> None:
    tokens = ReferenceStore(tmp_path / "reference", POLICY, per_token=True)
    tokens.write(entries({b"a": [-1.0, -2.0], b"b": [], b"c": [-3.0]}))
    assert as_dict(tokens.read()) == {b"a": [-1.0, -2.0], b"b": [], b"c": [-3.0]}
    assert as_dict(store.read()) == {}


def test_policies_are_apart(store: ReferenceStore, tmp_path: Path) -> None:
    store.write(entries({b"a": [-1.0]}))
    assert as_dict(ReferenceStore(tmp_path / "reference", ReferencePolicy({}), per_token=False).read()) == {}
    store.describe()
    assert json.loads((store.folder / "policy.json").read_text()) == POLICY.parts


def test_earlier_parts_win_and_keys_are_found() -> None:
    merged = Entries.merged([entries({b"b": [1.0], b"d": [2.0, 3.0]}), entries({b"a": [4.0], b"d": [5.0]})])
    assert as_dict(merged) == {b"a": [4.0], b"b": [1.0], b"d": [2.0, 3.0]}
    assert merged.find(np.array([b"d", b"", b"c", b"a", b"e"], KEY)).tolist() == [2, -1, -1, 0, -1]
    assert Entries.merged([]).find(merged.keys).tolist() == [-1, -1, -1]


def test_numbers_that_are_none_are_not_kept(store: ReferenceStore) -> None:
    store.write(entries({b"a": [-1.0], b"b": [float("nan")], b"c": [float("-inf")]}))
    assert as_dict(store.read()) == {b"a": [-1.0]}
    store.write(entries({b"b": [float("nan")]}))
    assert len(files(store)) == 1


@pytest.mark.parametrize("damage", ["cut", "flipped", "emptied"])
def test_a_damaged_file_is_put_aside_and_named_once(
    store: ReferenceStore, damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    store.write(entries({b"a": [-1.0]}))
    (damaged,) = files(store)
    store.write(entries({b"b": [-2.0]}))
    content = bytearray(damaged.read_bytes())
    content[-1] ^= 1
    damaged.write_bytes({"cut": content[:-3], "flipped": content, "emptied": b""}[damage])
    assert as_dict(store.read()) == {b"b": [-2.0]}
    said = "".join(capsys.readouterr().err.split())
    assert str(damaged) in said
    assert "isdamaged;whatitheldiscomputedagain" in said
    assert as_dict(store.read()) == {b"b": [-2.0]}
    assert capsys.readouterr().err == ""
    store.write(entries({b"a": [-1.0]}))
    assert as_dict(store.read()) == {b"a": [-1.0], b"b": [-2.0]}


def test_many_files_become_one(store: ReferenceStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reference_store, "_MANY_FILES", 3)
    expected = {}
    for number in range(5):
        store.write(entries({b"%d" % number: [float(number)]}))
        expected[b"%d" % number] = [float(number)]
    assert len(files(store)) == 5
    assert as_dict(store.read()) == expected
    assert len(files(store)) == 1
    assert as_dict(store.read()) == expected


def test_files_that_vanish_while_they_are_read_are_in_a_new_one(
    store: ReferenceStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process makes one file of many between the listing and the reading."""
    for number in range(5):
        store.write(entries({b"%d" % number: [float(number)]}))
    read_bytes, tidied = Path.read_bytes, []

    def read_after_another_has_tidied(file: Path) -> bytes:
        if not tidied:
            tidied.append(True)
            monkeypatch.setattr(reference_store, "_MANY_FILES", 3)
            ReferenceStore(store.folder.parent, POLICY, per_token=False).read()
            monkeypatch.setattr(reference_store, "_MANY_FILES", 32)
        return read_bytes(file)

    monkeypatch.setattr(Path, "read_bytes", read_after_another_has_tidied)
    assert as_dict(store.read()) == {b"%d" % number: [float(number)] for number in range(5)}
    assert len(files(store)) == 1


def test_a_cache_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    store = ReferenceStore(tmp_path / "file", POLICY, per_token=False)
    with pytest.raises(UserError, match=r"cannot be written: Not a directory\nSet LORA_DPO_CACHE to a folder"):
        store.write(entries({b"a": [-1.0]}))
