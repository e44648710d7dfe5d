from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from lora_dpo.errors import UserError
from lora_dpo.files import write_json, write_text
from lora_dpo.hub.package import MANIFEST, File
from lora_dpo.hub.selection import check_complete, has_tokenizer, select
from lora_dpo.model.hashes import weights_hash
from tests.hub.folders import adapter, model


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("x")


def test_states_caches_and_hidden_files_do_not_travel(tmp_path: Path) -> None:
    folder = adapter(tmp_path / "a")
    stays = ["optimizer.pt", "scheduler.pt", "rng_state_0.pth", "trainer_state.json", "training_args.bin", ".env"]
    stays += [
        ".cache/huggingface/x",
        "__pycache__/m.pyc",
        "global_step3/x",
        "latest",
        "a.partial",
        "custom/.git/config",
    ]
    touch(folder, *stays, "README.md", "custom/code.py", "tokenizer.json")
    travelling, left_out = select(folder, "adapter")
    assert sorted(travelling) == [
        "adapter_config.json",
        "adapter_model.safetensors",
        "custom/code.py",
        "tokenizer.json",
    ]
    assert sorted(left_out) == sorted(
        [".cache", ".env", "README.md", "__pycache__", "a.partial", "custom/.git", "global_step3", "latest", *stays[:5]]
    )


def refusal(folder: Path, kind: str = "model", record: dict | None = None) -> str:
    with pytest.raises(UserError) as refused:
        check_complete(folder, kind, select(folder, kind)[0], record)
    return str(refused.value)


def test_a_whole_model_passes_and_one_without_a_shard_does_not(tmp_path: Path) -> None:
    folder = model(tmp_path / "m", shards=3)
    record = {"stage": "dpo", "weights_sha256": weights_hash(str(folder), None)}
    check_complete(folder, "model", select(folder, "model")[0], record)
    (folder / "model-00002-of-00003.safetensors").unlink()
    assert "has no model-00002-of-00003.safetensors" in refusal(folder)


def test_a_shard_without_its_tensor(tmp_path: Path) -> None:
    folder = model(tmp_path / "m", shards=2)
    save_file({"other": np.zeros(3)}, folder / "model-00001-of-00002.safetensors")
    assert "has no tensor layer.0" in refusal(folder)


def test_weights_that_end_too_early(tmp_path: Path) -> None:
    folder = adapter(tmp_path / "a")
    weights = folder / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-10])
    assert "adapter_model.safetensors cannot be read" in refusal(folder, "adapter")


def test_weights_that_are_not_those_of_the_record(tmp_path: Path) -> None:
    assert "not those that were saved there" in refusal(model(tmp_path / "m"), record={"weights_sha256": "0" * 64})


def test_a_merged_model_needs_the_report_that_vouches_for_it(tmp_path: Path) -> None:
    folder = model(tmp_path / "m")
    record = {"stage": "merge", "weights_sha256": weights_hash(str(folder), None)}
    assert "merge_report.json is missing" in refusal(folder, record=record)
    write_json(folder / "merge_report.json", {"files": {"model.safetensors": "0" * 64}})
    assert "not those that merge_report.json vouches for" in refusal(folder, record=record)
    digest = File.at("x", folder / "model.safetensors").sha256
    write_json(folder / "merge_report.json", {"files": {"model.safetensors": digest}})
    check_complete(folder, "model", select(folder, "model")[0], record)


def test_a_checkpoint_is_compared_with_its_manifest(tmp_path: Path) -> None:
    folder = adapter(tmp_path / "step-2")
    write_json(folder / MANIFEST, {"files": {"adapter_config.json": {"bytes": 1, "sha256": "0" * 64}}})
    assert f"adapter_config.json is not what {MANIFEST} says" in refusal(folder, "adapter")


def test_pickles_and_broken_configurations(tmp_path: Path) -> None:
    folder = model(tmp_path / "m")
    touch(folder, "pytorch_model.bin")
    assert "is a pickle" in refusal(folder)
    (folder / "config.json").write_text("{")
    assert "config.json cannot be read" in refusal(folder)


def test_data_and_other_models_below_the_folder_do_not_travel(tmp_path: Path) -> None:
    folder = adapter(tmp_path / "a")
    adapter(folder / "checkpoint-5")
    adapter(folder / "best")
    stays = ["data/train.jsonl", "step-3/x.json", "checkpoints/y.json", "custom/rows.csv", "rows.parquet"]
    stays += ["model.safetensors", "model.safetensors.index.json"]
    travels = ["docs/README.md", "custom/manifest.json", "training/report.json", "custom/code.py"]
    touch(folder, *stays, *travels)
    travelling, left_out = select(folder, "adapter")
    assert sorted(travelling) == sorted(["adapter_config.json", "adapter_model.safetensors", *travels])
    expected = ["best", "checkpoint-5", "checkpoints", "custom/rows.csv", "data", "rows.parquet", "step-3", *stays[-2:]]
    assert sorted(left_out) == sorted(expected)


def test_shards_of_an_earlier_save_do_not_travel_and_a_second_model_is_refused(tmp_path: Path) -> None:
    folder = model(tmp_path / "m", shards=2)
    touch(folder, "model-00003-of-00003.safetensors", "pytorch_model.bin.index.json")
    travelling, left_out = select(folder, "model")
    assert left_out == ["model-00003-of-00003.safetensors", "pytorch_model.bin.index.json"]
    assert "model-00002-of-00002.safetensors" in travelling
    model(folder)
    assert "holds two models: model.safetensors, and the files that model.safetensors.index.json" in refusal(folder)


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    folder = model(tmp_path / "m")

    def said(name: str) -> str:
        with pytest.raises(UserError) as refused:
            select(folder, "model")
        (folder / name).unlink()
        return str(refused.value)

    (folder / "gone.txt").symlink_to("nowhere")
    assert "gone.txt is a link to nothing" in said("gone.txt")
    (folder / "loop.txt").symlink_to("loop.txt")
    assert "loop.txt is a link to nothing" in said("loop.txt")
    (folder / "custom").mkdir()
    (folder / "custom" / "again").symlink_to(folder / "custom")
    assert "is a link to a folder that it is in itself" in said("custom/again")
    os.mkfifo(folder / "pipe")
    assert "pipe is no regular file" in said("pipe")


def test_what_a_manifest_lists_must_be_there(tmp_path: Path) -> None:
    folder = model(tmp_path / "m")
    write_json(folder / MANIFEST, {"files": {"README.md": {}, "custom.py": {"sha256": "0" * 64}}})
    assert f"custom.py is missing, which {MANIFEST} lists" in refusal(folder)


@pytest.mark.parametrize("content", ["[]", "7", '{"files": []}', "{", '{"files": null}'])
def test_damaged_documents_are_named(tmp_path: Path, content: str) -> None:
    folder = model(tmp_path / "m", shards=2)
    record = {"stage": "merge", "weights_sha256": None}
    for name in (MANIFEST, "merge_report.json", "config.json", "model.safetensors.index.json"):
        before = (folder / name).read_bytes() if (folder / name).is_file() else None
        write_text(folder / name, content)
        if name != "config.json" or not content.startswith('{"'):
            said = refusal(folder, record=record if name == "merge_report.json" else None)
            assert name in said or "vouches for" in said
        (folder / name).unlink() if before is None else (folder / name).write_bytes(before)


def test_tokenizers() -> None:
    assert has_tokenizer(["config.json", "tokenizer.json"]) is True
    assert has_tokenizer(["custom/tokenizer.json", "tokenizer_config.json"]) is False
