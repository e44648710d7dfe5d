"""A folder with a tiny model and a run of it, and short questions."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from lora_dpo.inference.chat_model import ChatModel
from lora_dpo.inference.found import find_model
from lora_dpo.inference.sampling import Sampling
from lora_dpo.ui.drafting import Drafter
from lora_dpo.ui.sides import Side
from tests.adapters import finished_run

SAMPLING = Sampling(6, temperature=1.0)


@pytest.fixture(scope="session")
def _models(tiny_models, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("people")
    finished_run(shutil.copytree(tiny_models("llama"), folder / "base"), folder / "runs")
    return folder


@pytest.fixture
def work(_models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory: `base` and `runs/small`, which are not to be changed; all else is the test's own."""
    for name in ("base", "runs"):
        (tmp_path / name).symlink_to(_models / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def drafter(work: Path) -> Drafter:
    """Two answers of the tiny base model."""
    side = Side(ChatModel(find_model("base")), SAMPLING)
    return Drafter((side, side), seed=0)
