"""The reference in a step of its own, as a user starts it."""

from __future__ import annotations

import json
from pathlib import Path
from subprocess import CompletedProcess

import pytest
import yaml

from tests.process import lora_dpo
from tests.reference import rewrite_sums

pytestmark = pytest.mark.slow


@pytest.fixture
def work(tiny_models, tmp_path: Path) -> Path:
    rows = [{"prompt": f"What is {n}?", "chosen": f"It is {n}.", "rejected": "A word."} for n in range(12)]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    recipe = {
        "model": {"name": str(tiny_models("llama"))},
        "adapter": {"r": 2},
        "data": {"path": "data.jsonl"},
        "train": {"strategy": "single", "max_steps": 1, "global_batch_size": 4, "keep_checkpoints": 0},
        "evaluation": {"samples": 0},
        "run": {"name": "small"},
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
    return tmp_path


def start(work: Path, *words: str) -> tuple[CompletedProcess[str], str]:
    """Returns how `lora-dpo dpo` ended, and its words without the line breaks of a narrow screen."""
    cache = str(work / "cache")
    done = lora_dpo("dpo", "recipe.yaml", *words, cwd=work, CUDA_VISIBLE_DEVICES="", LORA_DPO_CACHE=cache)
    return done, " ".join(done.stderr.split())


def test_computed_beforehand_and_then_used(work: Path) -> None:
    first, said = start(work, "--reference-only")
    assert first.returncode == 0, first.stderr
    assert "Reference log-probs: 0 of 20 sequences are in the cache; computing 20." in said
    assert "20 sequences were computed, 0 were there already; they lie in " in said
    assert str(work / "cache" / "reference") in said
    assert not (work / "runs").exists()

    trained, said = start(work, "dpo.beta=0.3", "train.learning_rate=1e-3")
    assert trained.returncode == 0, trained.stderr
    assert "20 of 20 sequences are in the cache; computing 0." in said
    files = {file: file.stat().st_mtime_ns for file in (work / "runs").rglob("*")}
    assert any(file.match("runs/small/data/reference/*/sums/*.safetensors") for file in files)

    again, said = start(work, "data.limit=6", "--reference-only")
    assert again.returncode == 0, again.stderr
    assert "8 of 10 sequences are in the cache; computing 2." in said, "one question was held out before"
    assert {file: file.stat().st_mtime_ns for file in (work / "runs").rglob("*")} == files

    folder = rewrite_sums(work / "cache", lambda values: values + 1.0)
    refused, said = start(work, "run.name=second")
    assert refused.returncode == 2, refused.stderr
    assert "are not this reference's: one is 1 nats off" in said
    assert str(folder) in said
    assert "Traceback" not in said


def test_there_is_nothing_to_keep_of_a_live_reference(work: Path) -> None:
    refused, said = start(work, "dpo.reference=live", "--reference-only")
    assert refused.returncode == 2, refused.stderr
    assert "Error: dpo.reference is live, so there are no reference log-probs to compute beforehand." in said
    assert not (work / "runs").exists()
    assert not (work / "cache").exists()
