from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from lora_dpo.errors import UserError
from lora_dpo.files import write_json
from lora_dpo.hub.package import MANIFEST, File
from lora_dpo.hub.selection import check_complete, select
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
        [".cache", ".env", "__pycache__", "a.partial", "custom/.git", "global_step3", "latest", *stays[:5]]
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
