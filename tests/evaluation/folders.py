"""Folders that look like runs, adapters and models."""

from __future__ import annotations

import json
from pathlib import Path

from lora_dpo.recipe.run_folder import RunFolder
from tests.small import small_recipe


def made(folder: Path, method: str = "lora", **sections) -> RunFolder:
    """Makes the folder of a finished run, with nothing in its files."""
    recipe = small_recipe("org/base", folder.parent, adapter={"method": method}, run={"name": folder.name}, **sections)
    run = RunFolder.of(recipe)
    run.create(recipe, overwrite=False).release()
    if method == "full":
        model(run.model)
    else:
        adapter(run.adapter, "org/base")
        adapter(run.checkpoints / "step-2", "org/base")
    run.report_json.write_text("{}")
    return run


def adapter(folder: Path, base: str | None) -> None:
    folder.mkdir(parents=True)
    config = {"base_model_name_or_path": base, "revision": "v2"}
    (folder / "adapter_config.json").write_text(json.dumps(config))


def model(folder: Path) -> None:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
