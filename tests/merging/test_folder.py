from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest
from filelock import FileLock

from lora_dpo.errors import UserError
from lora_dpo.merging.folder import (
    check_free,
    check_room,
    copy_companions,
    shards_of,
    write_config,
    written_aside,
)


def test_a_folder_gets_its_name_when_it_is_whole(tmp_path: Path) -> None:
    target = tmp_path / "not" / "yet" / "there"
    with written_aside(target) as folder:
        (folder / "file").write_text("x")
        assert not target.exists()
        assert folder.name.startswith(".")
    assert [file.name for file in target.iterdir()] == ["file"]
    assert list(target.parent.iterdir()) == [target]


def test_an_empty_folder_is_taken(tmp_path: Path) -> None:
    target = tmp_path / "out"
    target.mkdir()
    check_free(target)
    with written_aside(target) as folder:
        (folder / "file").write_text("x")
    assert [file.name for file in target.iterdir()] == ["file"]


def test_what_fails_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), written_aside(tmp_path / "out") as folder:
        (folder / "file").write_text(str(1 / 0))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_a_disk_that_takes_no_more_is_said_in_words(code: int, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="could not be written to its end") as caught, written_aside(tmp_path / "out"):
        raise OSError(code, os.strerror(code))
    assert os.strerror(code) in caught.value.what
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_process_left_is_removed(tmp_path: Path) -> None:
    leftover = tmp_path / ".out.partial" / "model.safetensors"
    leftover.parent.mkdir()
    leftover.write_text("half")
    with written_aside(tmp_path / "out") as folder:
        assert not (folder / "model.safetensors").exists()
    assert list((tmp_path / "out").iterdir()) == []


def test_two_do_not_write_into_one_folder(tmp_path: Path) -> None:
    partial = tmp_path / ".out.partial"
    partial.mkdir()
    (partial / "file").write_text("of the other")
    with (
        FileLock(partial / ".lock"),
        pytest.raises(UserError, match="Another process is merging"),
        written_aside(tmp_path / "out"),
    ):
        pass
    assert (partial / "file").read_text() == "of the other"


def test_a_place_that_is_taken(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for target in (tmp_path, tmp_path / "file"):
        with pytest.raises(UserError, match=f"{target} is there already, and nothing in it was touched"):
            check_free(target)
    check_free(tmp_path / "new")


def test_a_place_where_no_folder_can_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "empty")
    for target, why in (
        (tmp_path / "file" / "out", "file is a file, so there can be no"),
        (tmp_path / "link", "link is a link"),
        (Path("."), "is the current folder"),
    ):
        with pytest.raises(UserError, match=why):
            check_free(target)


def test_too_little_room(tmp_path: Path) -> None:
    check_room(tmp_path / "out", 1)
    with pytest.raises(UserError, match=r"1000000\.00 GB are needed at .*out, and .* GB are free"):
        check_room(tmp_path / "out", 10**15)


def test_what_travels_and_what_does_not(tmp_path: Path) -> None:
    base, adapter, target = (tmp_path / name for name in ("base", "adapter", "target"))
    for folder in (base, adapter, target):
        folder.mkdir()
    travels = ["generation_config.json", "modeling_own.py", "LICENSE", "tokenizer.model", "tokenizer_config.json"]
    stays = ["config.json", "model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "README.md"]
    stays += ["provenance.json", "merge_report.json"]
    for name in (*travels, *stays):
        (base / name).write_text("base")
    for name in ("tokenizer_config.json", "chat_template.jinja", "adapter_config.json", "provenance.json"):
        (adapter / name).write_text("adapter")
    copy_companions(base, target, adapter, same_tokens=True)
    found = {file.name: file.read_text() for file in target.iterdir()}
    assert found == {
        **dict.fromkeys(travels, "base"),
        "tokenizer_config.json": "adapter",
        "chat_template.jinja": "adapter",
    }
    for file in target.iterdir():
        file.unlink()
    copy_companions(base, target, adapter, same_tokens=False)  # a file of the base alone would be of other tokens
    assert not (target / "tokenizer.model").exists()


def test_the_configuration_says_the_new_precision_and_nothing_else_new(tmp_path: Path) -> None:
    base = tmp_path / "base"
    base.mkdir()
    (base / "config.json").write_text(json.dumps({"torch_dtype": "float32", "model_type": "llama"}))
    write_config(base, tmp_path, None)
    assert json.loads((tmp_path / "config.json").read_text()) == {"torch_dtype": "float32", "model_type": "llama"}
    write_config(base, tmp_path, "bfloat16")
    assert json.loads((tmp_path / "config.json").read_text()) == {"model_type": "llama", "dtype": "bfloat16"}


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({}, ["has no safetensors files", "save_pretrained(FOLDER), and use --base FOLDER"]),
        ({"quantization_config": {"quant_method": "gptq"}}, ["are saved quantised (gptq)", "--base NAME"]),
    ],
)
def test_a_base_that_cannot_be_read_piece_by_piece(config: dict, words: list[str], tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "pytorch_model.bin").write_text("x")
    with pytest.raises(UserError) as caught:
        shards_of(tmp_path, "org/base")
    assert [word for word in words if word not in str(caught.value)] == []
