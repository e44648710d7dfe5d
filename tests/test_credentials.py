from __future__ import annotations

import os
from pathlib import Path

import pytest

from lora_dpo.credentials import load_token


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Returns the working directory, two folders below the one that tests may put a .env into."""
    folder = tmp_path / "project" / "below"
    folder.mkdir(parents=True)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("HF_TOKEN", "")  # so that monkeypatch takes away again what load_token sets
    monkeypatch.delenv("HF_TOKEN")
    return folder


def test_without_a_token_nothing_is_set(home: Path) -> None:
    (home / ".env").write_text("OTHER=1\nHF_TOKEN=\n", encoding="utf-8")
    load_token()
    assert "HF_TOKEN" not in os.environ
    assert "OTHER" not in os.environ


@pytest.mark.parametrize("name", ["HF_TOKEN", "ACCESS_TOKEN"])
@pytest.mark.parametrize("folder", [".", "..", "../.."])
def test_the_nearest_env_file_upwards_is_read(home: Path, name: str, folder: str) -> None:
    (home / folder / ".env").write_text(f"# my token\n{name}=' hf_file '\nSECRET=1\n", encoding="utf-8")
    load_token()
    assert os.environ["HF_TOKEN"] == "hf_file"
    assert "SECRET" not in os.environ


def test_the_nearer_of_two_files_is_the_one_that_is_read(home: Path) -> None:
    (home / ".env").write_text("ACCESS_TOKEN=near\n", encoding="utf-8")
    (home.parent / ".env").write_text("HF_TOKEN=far\n", encoding="utf-8")
    load_token()
    assert os.environ["HF_TOKEN"] == "near"


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"HF_TOKEN": "own"}, "own"),
        ({"ACCESS_TOKEN": "access"}, "access"),
        ({"HF_TOKEN": "own", "ACCESS_TOKEN": "access"}, "own"),
        ({"HF_TOKEN": "", "ACCESS_TOKEN": "access"}, "access"),
        ({"HF_TOKEN": ""}, "file"),
    ],
)
def test_the_environment_goes_before_the_file(
    home: Path, monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], expected: str
) -> None:
    (home / ".env").write_text("HF_TOKEN=file\n", encoding="utf-8")
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    load_token()
    assert os.environ["HF_TOKEN"] == expected


def test_hf_token_goes_before_access_token_in_the_file(home: Path) -> None:
    (home / ".env").write_text("ACCESS_TOKEN=second\nHF_TOKEN=first\n", encoding="utf-8")
    load_token()
    assert os.environ["HF_TOKEN"] == "first"


def test_a_token_is_never_printed(home: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (home / ".env").write_text("ACCESS_TOKEN=hf_secret\nnot a line of a .env file\n", encoding="utf-8")
    load_token()
    assert os.environ["HF_TOKEN"] == "hf_secret"
    captured = capfd.readouterr()
    assert "hf_secret" not in captured.out + captured.err
