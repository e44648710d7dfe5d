from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import pytest

from lora_dpo.errors import UserError
from lora_dpo.training.checkpoints import About, Checkpoints, read


def about(step: int, **changes) -> About:
    values = {
        "max_steps": 9,
        "world_size": 1,
        "layout": "replicated",
        "recipe": {},
        "recipe_hash": "",
        "data": {},
        "origin": {},
        "metrics_bytes": 0,
    }
    return About(step=step, **{**values, **changes})


def write(checkpoints: Checkpoints, step: int, best: int | None = None) -> Path:
    """Commits a small checkpoint, with a file in a folder of its own as DeepSpeed has."""
    checkpoints.clear_partial()
    folder = checkpoints.partial / f"checkpoint-{step}"
    (folder / "global_step").mkdir(parents=True)
    (folder / "weights.bin").write_bytes(bytes([step]) * 1000)
    (folder / "global_step" / "shard.pt").write_text(f"shard of {step}", encoding="utf-8")
    return checkpoints.commit(folder, about(step), best)


@pytest.fixture
def checkpoints(tmp_path: Path) -> Checkpoints:
    return Checkpoints(tmp_path / "checkpoints", keep=3)


def test_a_checkpoint_knows_every_byte(checkpoints: Checkpoints) -> None:
    path = write(checkpoints, 4)
    assert path == checkpoints.folder / "step-4"
    assert list(checkpoints.partial.iterdir()) == []
    checkpoint = read(path)
    assert checkpoint.about == about(4)
    assert {name: size for name, (size, _) in checkpoint.files.items()} == {
        "global_step/shard.pt": len("shard of 4"),
        "weights.bin": 1000,
    }
    assert checkpoint.files["weights.bin"][1] == hashlib.sha256(b"\x04" * 1000).hexdigest()
    assert checkpoint.damage() is None


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


DAMAGES = {
    "flipped": (lambda path: flip(path / "weights.bin"), "weights.bin is not what was written"),
    "truncated": (lambda path: os.truncate(path / "weights.bin", 500), "weights.bin has 500 of 1000 bytes"),
    "missing": (lambda path: (path / "global_step" / "shard.pt").unlink(), "global_step/shard.pt is missing"),
    "no manifest": (lambda path: (path / "manifest.json").unlink(), "It has no manifest.json, which is written last."),
    "half a manifest": (lambda path: os.truncate(path / "manifest.json", 99), "Its manifest.json cannot be read"),
    "another manifest": (lambda path: (path / "manifest.json").write_text("[]"), "Its manifest.json cannot be read"),
}


@pytest.mark.parametrize("kind", DAMAGES)
def test_the_newest_whole_one_is_found_and_damaged_ones_are_named(checkpoints: Checkpoints, kind: str) -> None:
    damage, words = DAMAGES[kind]
    write(checkpoints, 2)
    write(checkpoints, 10)
    damage(checkpoints.place(10))
    newest, damaged = checkpoints.newest()
    assert newest.about.step == 2
    (line,) = damaged
    assert line.startswith(f"{checkpoints.place(10)} cannot be used: {words}")


def test_no_checkpoint_at_all(checkpoints: Checkpoints) -> None:
    assert checkpoints.newest() == (None, [])
    assert checkpoints.steps() == []


def test_what_was_never_committed_does_not_count(checkpoints: Checkpoints) -> None:
    (checkpoints.partial / "checkpoint-3").mkdir(parents=True)
    (checkpoints.folder / "step-x").mkdir()
    assert checkpoints.newest() == (None, [])
    with pytest.raises(UserError, match="is no complete checkpoint") as caught:
        read(checkpoints.partial / "checkpoint-3")
    assert "run.resume=PATH" in caught.value.fix


def test_a_damaged_one_in_the_way_is_replaced(checkpoints: Checkpoints) -> None:
    flip(write(checkpoints, 4) / "weights.bin")
    write(checkpoints, 4)
    assert read(checkpoints.place(4)).damage() is None
    assert sorted(path.name for path in checkpoints.folder.iterdir()) == [".partial", "step-4"]


@pytest.mark.parametrize(("keep", "kept"), [(None, [1, 2, 3, 10]), (3, [2, 3, 10]), (1, [10]), (0, [10])])
def test_the_newest_are_kept_by_step_not_by_time_or_name(tmp_path: Path, keep: int | None, kept: list[int]) -> None:
    checkpoints = Checkpoints(tmp_path, keep)
    for step in (1, 2, 3):
        os.utime(write(checkpoints, step), (9e9 - step, 9e9 - step))
    write(checkpoints, 10)
    assert checkpoints.steps() == kept


def test_the_best_one_is_kept_besides(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=1)
    write(checkpoints, 1)
    write(checkpoints, 2, best=1)
    write(checkpoints, 3, best=1)
    assert checkpoints.steps() == [1, 3]


def test_a_course_that_was_gone_back_behind_does_not_stay(checkpoints: Checkpoints) -> None:
    for step in (2, 4, 6):
        write(checkpoints, step)
    write(checkpoints, 3)
    assert checkpoints.steps() == [2, 3]


def test_what_a_killed_save_or_removal_left_is_cleared(checkpoints: Checkpoints) -> None:
    (checkpoints.partial / "checkpoint-3").mkdir(parents=True)
    (checkpoints.folder / ".aside-step-2").mkdir()
    checkpoints.clear_partial()
    assert [path.name for path in checkpoints.folder.iterdir()] == [".partial"]


@pytest.mark.parametrize(("keep", "left"), [(0, False), (1, True)])
def test_a_finished_run_keeps_what_it_was_asked_to(tmp_path: Path, keep: int, left: bool) -> None:
    checkpoints = Checkpoints(tmp_path / "checkpoints", keep)
    write(checkpoints, 1)
    checkpoints.finish()
    assert checkpoints.folder.exists() == left
    assert not checkpoints.partial.exists()


def test_one_of_another_version_is_not_called_damaged(checkpoints: Checkpoints) -> None:
    file = write(checkpoints, 1) / "manifest.json"
    file.write_text(file.read_text(encoding="utf-8").replace('"schema_version": 3', '"schema_version": 1'))
    with pytest.raises(UserError, match="was written by another version of lora-dpo"):
        read(file.parent)


def test_a_manifest_says_its_version(checkpoints: Checkpoints) -> None:
    manifest = json.loads((write(checkpoints, 1) / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["schema_version"] == 3
    assert set(manifest) == {"schema_version", "about", "files"}
