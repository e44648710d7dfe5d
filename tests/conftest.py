"""Fixtures that several folders of tests share."""

from __future__ import annotations

import shutil
import signal
import uuid
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

REPOSITORY = Path(__file__).parent.parent

# The same examples each time, so that a test which fails has been broken; `--hypothesis-profile=explore` tries others.
NOT_WRONG = [HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
settings.register_profile("explore", deadline=None, suppress_health_check=NOT_WRONG)
settings.register_profile("same", settings.get_profile("explore"), derandomize=True)
settings.load_profile("same")


@pytest.hookimpl(tryfirst=True)  # xdist reads the groups in the same hook
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """With `-n 2 --dist loadgroup` a file's tests share a worker, and those on the emulated cluster as well."""
    for item in items:
        on_cluster = "cluster" in getattr(item, "fixturenames", ())
        item.add_marker(
            pytest.mark.xdist_group("slurm" if on_cluster else item.path.relative_to(REPOSITORY).as_posix())
        )


def pytest_collection_finish(session: pytest.Session) -> None:
    """Some versions of pytest and xdist ignore the groups together, and say nothing: jobs then miss their cluster."""
    if session.config.getoption("loadgroup", False) and any("@" not in item.nodeid for item in session.items):
        raise pytest.UsageError("pytest-xdist has put tests into no group: install the versions of constraints.txt.")


@pytest.fixture(autouse=True)
def _offline_and_apart(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Keeps a developer's token, trackers, GPU and cache out of the tests, and the tests off the network."""
    monkeypatch.setenv("LORA_DPO_CACHE", str(tmp_path_factory.getbasetemp() / "caches" / uuid.uuid4().hex))
    for name in ("HF_TOKEN", "ACCESS_TOKEN", "WANDB_API_KEY", "RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.fixture(autouse=True)
def _hears_ctrl_c():
    """A shell that puts a job into the background lets it ignore Ctrl-C, and all that it starts."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="session")
def tiny_models(tmp_path_factory: pytest.TempPathFactory):
    """Returns a function from an architecture's name to the folder of a tiny random model of it."""
    import torch

    from tests.tiny import save_tiny_model

    torch.set_num_threads(1)  # several are slower on layers this small, five times so on a busy machine
    folders: dict[str, Path] = {}

    def folder_of(architecture: str) -> Path:
        if architecture not in folders:
            folders[architecture] = save_tiny_model(architecture, tmp_path_factory.mktemp(architecture))
        return folders[architecture]

    return folder_of


@pytest.fixture
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Returns a function that puts files into the Hub client's cache, as if they had been fetched once."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)

    def put(repository: str, files: dict[str, str]) -> Path:
        place = tmp_path / "hub" / f"models--{repository.replace('/', '--')}"
        (place / "refs").mkdir(parents=True)
        (place / "refs" / "main").write_text("a" * 40)
        folder = place / "snapshots" / ("a" * 40)
        folder.mkdir(parents=True)
        for name, text in files.items():
            (folder / name).write_text(text)
        return folder

    return put


@pytest.fixture(scope="session")
def _trained(tiny_models, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from lora_dpo.pipeline import align
    from tests.small import small_recipe

    folder = tmp_path_factory.mktemp("trained")
    recipe = small_recipe(
        tiny_models("llama"),
        folder,
        data={"path": "bundled/misconceptions", "limit": 24},
        train={"learning_rate": 2e-2, "evals_per_epoch": 0, "save_steps": 1, "keep_checkpoints": None},
    )
    return align(recipe)


@pytest.fixture
def trained(_trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Returns a copy of a run of a tiny model on 24 questions, `runs/small` in the working directory."""
    from lora_dpo.recipe.run_folder import RunFolder

    monkeypatch.chdir(tmp_path)
    shutil.copytree(_trained, "runs/small")
    return RunFolder(Path("runs/small"))
