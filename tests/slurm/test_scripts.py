"""The sbatch scripts as texts: what shellcheck says, and that each variable they read is documented."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from lora_dpo import resources
from tests.process import ROOT

BATCH = sorted(resources.folder("slurm").glob("*.sbatch"))
_VARIABLE = r"\b(LORA_DPO_\w+|PROCESSES_PER_NODE|MAIN_PROCESS_IP)\b"


@pytest.mark.parametrize("script", [*BATCH, ROOT / "tests" / "slurm" / "cluster.sh"], ids=lambda path: path.name)
def test_shellcheck_has_nothing_to_say(script: Path):
    program = shutil.which("shellcheck", path=str(Path(sys.executable).parent)) or shutil.which("shellcheck")
    if program is None:
        pytest.skip("shellcheck is not installed (it is in the extra `dev`)")
    done = subprocess.run([program, script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.parametrize("script", BATCH, ids=lambda path: path.name)
def test_defaults_stand_before_the_first_command(script: Path):
    """Slurm reads no #SBATCH line after it, and expands no variable in them."""
    lines = script.read_text(encoding="utf-8").splitlines()
    first = next(n for n, line in enumerate(lines) if line and not line.startswith("#"))
    defaults = [n for n, line in enumerate(lines) if line.startswith("#SBATCH")]
    assert defaults and max(defaults) < first
    assert not any("$" in lines[n] for n in defaults)


def test_each_variable_is_documented():
    readme = (resources.folder("slurm") / "README.md").read_text(encoding="utf-8")
    for script in BATCH:
        for name in re.findall(_VARIABLE, script.read_text(encoding="utf-8")):
            assert f"`{name}`" in readme or name == "LORA_DPO_NODES", name
