"""The order of the layers, and what the light ones must not load."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
HEAVY = ("torch", "transformers", "trl", "peft", "datasets", "accelerate", "deepspeed", "matplotlib")


def loaded_heavy_modules(code: str) -> list[str]:
    """Runs code in a new Python; returns which of `HEAVY` it has loaded at its end."""
    report = f"import sys; print('HEAVY', *(name for name in {HEAVY} if name in sys.modules))"
    result = subprocess.run([sys.executable, "-c", f"{code}\n{report}"], capture_output=True, text=True, cwd=ROOT)
    assert result.returncode == 0, result.stderr
    return result.stdout.splitlines()[-1].split()[1:]


def test_imports_go_downwards_only():
    command = [str(Path(sys.executable).with_name("lint-imports")), "--no-cache"]
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize(
    "arguments", [["--help"], ["quickstart", "--help"], ["dpo", "--help"], ["sft", "--help"], ["schema"]]
)
def test_the_command_line_answers_without_the_heavy_libraries(arguments):
    code = f"import sys\nsys.argv = ['lora-dpo', *{arguments}]\nfrom lora_dpo.cli import main\n"
    assert (
        loaded_heavy_modules(f"{code}try:\n    sys.exit(main())\nexcept SystemExit as end:\n    assert not end.code")
        == []
    )


@pytest.mark.parametrize("package", ["recipe", "cluster"])
def test_light_packages_do_not_load_the_heavy_libraries(package):
    code = (
        f"import importlib, pkgutil, lora_dpo.{package} as package\n"
        "for module in pkgutil.walk_packages(package.__path__, package.__name__ + '.'):\n"
        "    importlib.import_module(module.name)\n"
    )
    assert loaded_heavy_modules(code) == []
