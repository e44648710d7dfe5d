"""A run that is trained once, for all tests that measure one."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from lora_dpo.recipe.run_folder import RunFolder
from tests.small import small_recipe


@pytest.fixture(scope="session")
def _trained(tiny_models, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from lora_dpo.pipeline import align

    folder = tmp_path_factory.mktemp("trained")
    recipe = small_recipe(
        tiny_models("llama"),
        folder,
        data={"path": "bundled/misconceptions", "limit": 24},
        train={"learning_rate": 2e-2, "evals_per_epoch": 0, "save_steps": 1, "keep_checkpoints": None},
    )
    return align(recipe)


@pytest.fixture
def trained(_trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunFolder:
    """Returns a copy of a run of a tiny model on 24 questions, `runs/small` in the working directory."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(_trained, "runs/small")
    return RunFolder(Path("runs/small"))
