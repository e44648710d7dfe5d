"""The wheel, built from the checkout and from the sdist, works without the checkout."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

from lora_dpo import resources

ROOT = Path(__file__).resolve().parents[2]
NOT_SOURCES = (".*", "__pycache__", "*.egg-info", "build", "dist", "runs")

pytestmark = pytest.mark.slow


def run(*command: str | Path, cwd: Path) -> str:
    """Runs a command that must succeed, without the variables that lead Python to other packages."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "PIP_"))}
    result = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, f"{command}\n{result.stdout}\n{result.stderr}"
    return result.stdout


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Builds in a copy: a checkout's `build/` would end up in the next wheel."""
    tmp = tmp_path_factory.mktemp("build")
    shutil.copytree(ROOT, tmp / "sources", ignore=shutil.ignore_patterns(*NOT_SOURCES))
    build = (sys.executable, "-m", "build", "--no-isolation", "--outdir")
    run(*build, tmp / "through sdist", cwd=tmp / "sources")  # sdist, then the wheel from it
    run(*build, tmp / "direct", "--wheel", cwd=tmp / "sources")
    return {name: next((tmp / name).glob("*.whl")) for name in ("direct", "through sdist")}


def names_in(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def files_below(folder: Path) -> set[str]:
    files = (file.relative_to(folder) for file in folder.rglob("*") if file.is_file())
    return {file.as_posix() for file in files if "__pycache__" not in file.parts}


def test_the_wheel_holds_the_package_and_its_folders_and_nothing_else(wheels):
    expected = {f"lora_dpo/{name}" for name in files_below(ROOT / "lora_dpo")}
    for folder in resources.FOLDERS:
        expected |= {f"lora_dpo/_resources/{folder}/{name}" for name in files_below(ROOT / folder)}
    found = {name for name in names_in(wheels["direct"]) if ".dist-info/" not in name}
    assert found == expected


def test_the_sdist_makes_the_same_wheel(wheels):
    assert names_in(wheels["through sdist"]) == names_in(wheels["direct"])


def test_metadata_names_licence_python_and_command(wheels):
    with zipfile.ZipFile(wheels["direct"]) as archive:
        info = next(name for name in archive.namelist() if name.endswith("/METADATA")).rpartition("/")[0]
        metadata = archive.read(f"{info}/METADATA").decode()
        assert "lora-dpo = lora_dpo.cli:main" in archive.read(f"{info}/entry_points.txt").decode()
        assert "Apache License" in archive.read(f"{info}/licenses/LICENSE").decode()
    assert "\nLicense-Expression: Apache-2.0\n" in metadata
    assert "\nRequires-Python: >=3.11\n" in metadata


@pytest.mark.parametrize("origin", ["direct", "through sdist"])
def test_the_installed_wheel_works_far_from_the_checkout(wheels, tmp_path, origin):
    venv, elsewhere = tmp_path / "venv", tmp_path / "elsewhere"
    elsewhere.mkdir()
    run(sys.executable, "-m", "venv", "--without-pip", venv, cwd=elsewhere)
    pip = (sys.executable, "-m", "pip", "--python", venv / "bin" / "python")
    run(*pip, "install", "--no-deps", "--no-index", "--disable-pip-version-check", wheels[origin], cwd=elsewhere)
    # The dependencies are this environment's. As a mere path entry its .pth files are not read, so that an editable
    # install of lora_dpo in it stays out of sight.
    site = next(venv.glob("lib/python*/site-packages"))
    (site / "dependencies.pth").write_text(sysconfig.get_paths()["purelib"])

    assert json.loads(run(venv / "bin" / "lora-dpo", "schema", cwd=elsewhere))["properties"]["dpo"]
    program = """if True:
        import json
        from pathlib import Path
        import yaml
        import lora_dpo
        from lora_dpo import resources
        from lora_dpo.recipe.loading import load_recipe
        config = yaml.safe_load((resources.folder("accelerate_configs") / "zero3.yaml").read_text())
        found = {name: sorted(file.name for file in resources.folder(name).iterdir()) for name in resources.FOLDERS}
        print(json.dumps([lora_dpo.__file__, load_recipe("quickstart").run.name, config, found]))
    """
    file, run_name, config, found = json.loads(run(venv / "bin" / "python", "-c", program, cwd=elsewhere))
    assert Path(file).is_relative_to(site)
    assert run_name == "quickstart"
    assert config["distributed_type"] == "DEEPSPEED"
    assert found == {name: sorted(file.name for file in (ROOT / name).iterdir()) for name in resources.FOLDERS}
    assert list(elsewhere.iterdir()) == []
