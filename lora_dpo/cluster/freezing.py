"""What a run's jobs are started from, kept in its folder: a change of the checkout while they wait has no effect."""

from __future__ import annotations

import shlex
import shutil
from pathlib import Path

import lora_dpo
from lora_dpo import resources
from lora_dpo.cluster.planning import Frozen
from lora_dpo.cluster.profile import Profile
from lora_dpo.code_version import COMMIT_FILE, commit
from lora_dpo.errors import UserError
from lora_dpo.files import partial_path, remove, replace_folder, write_text
from lora_dpo.recipe.loading import to_yaml
from lora_dpo.recipe.run_folder import RunFolder
from lora_dpo.recipe.schema import Recipe

_RECIPE_HEAD = "# What `lora-dpo submit` was asked for, defaults included; its jobs read this file.\n"
_SETUP_HEAD = "# shellcheck shell=bash\n# Written by `lora-dpo submit`; its jobs source this file first.\n"


def frozen_in(run: RunFolder, profile: Profile) -> Frozen:
    """Returns where a run's jobs find what they are started from; nothing is written.

    Raises:
        UserError: The profile's setup file is not there.
    """
    return Frozen(run.slurm / "code", run.slurm / "recipe.yaml", run.slurm / "setup.sh" if _setup(profile) else None)


def freeze(frozen: Frozen, recipe: Recipe, profile: Profile) -> None:
    """Writes code, recipe and setup.

    Args:
        frozen: Where to.
        recipe: The recipe.
        profile: The cluster's profile.
    """
    _copy_code(frozen.code)
    write_text(frozen.recipe, _RECIPE_HEAD + to_yaml(recipe))
    if frozen.setup is not None:
        write_text(frozen.setup, _SETUP_HEAD + _setup(profile))


def code_in_use() -> Path:
    """Returns a folder in which the scripts that would be copied stand as they will in the copy."""
    return resources.folder("slurm").parent


def code_version() -> str:
    """Returns the version, and of a checkout the commit, in words."""
    found = commit()
    if found is None:
        return f"lora-dpo {lora_dpo.__version__}"
    changes = " with changes" if found.endswith("+") else ""
    return f"lora-dpo {lora_dpo.__version__}, commit {found[:12].rstrip('+')}{changes}"


def _copy_code(target: Path) -> None:
    partial = partial_path(target)
    remove(partial)
    ignored = shutil.ignore_patterns("__pycache__", "_resources", "*.pyc")
    shutil.copytree(Path(lora_dpo.__file__).resolve().parent, partial / "lora_dpo", ignore=ignored)
    for name in resources.FOLDERS:
        shutil.copytree(resources.folder(name), partial / name, ignore=ignored)
    write_text(partial / COMMIT_FILE, f"{commit() or ''}\n")
    replace_folder(partial, target)


def _setup(profile: Profile) -> str:
    """Returns the lines that a job runs first; none where the profile has nothing to set up."""
    lines = []
    if profile.setup is not None:
        file = Path(profile.setup).expanduser()
        if not file.is_absolute() or not file.is_file():
            raise UserError(
                f"The profile's setup is {profile.setup}, which is no file with an absolute path.",
                fix="Write what activates the environment into a file, and name it as ~/FILE or /PATH/FILE.",
            )
        lines.append(f"source {shlex.quote(str(file))}")
    if profile.modules:
        lines.append(f"module load {shlex.join(profile.modules)}")
    return "".join(f"{line}\n" for line in lines)
