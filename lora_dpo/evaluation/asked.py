"""What `lora-dpo eval` was asked for, found out and checked as far as that needs no model."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lora_dpo.errors import UserError
from lora_dpo.evaluation.subjects import Named, as_recorded, base_of, find, safe_name, was_on_four_bits
from lora_dpo.recipe.for_evaluation import recipe_of_run, recipe_of_stranger
from lora_dpo.recipe.run_folder import RunFolder
from lora_dpo.recipe.schema import Recipe

_ELSEWHERE = Path("evaluations")
_OTHER_FOLDER = "Name another folder: --output FOLDER."


@dataclass(frozen=True, slots=True)
class Asked:
    """What is to be measured, on what, and where the results go.

    Attributes:
        named: The adapter or model.
        recipe: How it is loaded and measured; with `data` its data section is the test set.
        data: What the user calls a test set; None where it is the run's own, or there is none.
        output: Where the results go, laid out as a run's.
    """

    named: Named
    recipe: Recipe
    data: str | None
    output: RunFolder

    @property
    def is_own_report(self) -> bool:
        """Whether it is a run on its own held-out data, whose report stands in the run itself."""
        named = self.named
        own = named.run is not None and self.output.path.resolve() == named.run.path.resolve()
        return own and named.kind == "run" and self.data is None

    def identity(self) -> dict[str, Any]:
        """Returns what two reports must agree in to be of the same thing."""
        named = self.named
        return {
            "kind": named.kind,
            "name": named.name,
            "place": named.place if named.run is None else None,
            "data": self.data,
        }


def ask(
    word: str,
    *,
    base: str | None = None,
    data: str | None = None,
    output: str | None = None,
    overrides: Sequence[str] = (),
    needs_test_set: bool = True,
) -> Asked:
    """Finds out what is to be measured, and where the results go.

    Args:
        word: SUBJECT.
        base: The model before; needed for a whole model, and for an adapter that does not name its own.
        data: A test set, as `data.path` is written in a recipe; None is a run's own.
        output: Folder of the results; None is in the run, or below `evaluations/`.
        overrides: `section.key=value` words.
        needs_test_set: Whether something is to be measured on a test set.

    Raises:
        UserError: There is no such thing, it cannot be measured like this, or results of something else are in the way.
    """
    named = find(word)
    if named.run is not None:
        recipe = _recipe_of_run(named.run, base, data, overrides)
    elif data is None and needs_test_set:
        raise UserError(
            f"{word} has no held-out data of its own, since nothing is known of its training.",
            fix="Name a test set: --data FILE_OR_HUB_ID, as --data bundled/misconceptions.",
        )
    else:
        method = "full" if named.kind == "model" else "qlora" if was_on_four_bits(named) else "lora"
        recipe = recipe_of_stranger(named.name, base_of(named, base), method, data, overrides)
    asked = Asked(named, recipe, data, _output(named, recipe, data, output))
    _check_output(asked)
    return asked


def _recipe_of_run(run: RunFolder, base: str | None, data: str | None, overrides: Sequence[str]) -> Recipe:
    recipe = run.load_recipe()
    if base is not None:
        raise UserError(
            f"--base {base} has no meaning for {run.path}, which was trained on {recipe.model.name}.",
            fix="Leave it out.",
        )
    pinned = recipe.model_copy(update={"model": as_recorded(recipe.model, run.path)})
    return recipe_of_run(pinned, data, overrides)


def _output(named: Named, recipe: Recipe, data: str | None, output: str | None) -> RunFolder:
    if output is not None:
        return RunFolder(Path(output).expanduser())
    parts = [] if named.kind == "run" else [Path(named.place).name if named.run else named.name]
    parts += [] if data is None else ["+".join(_data_name(source.path) for source in recipe.data.sources())]
    if named.run is None:
        return RunFolder(_ELSEWHERE / "-on-".join(parts))
    return RunFolder(named.run.evaluation / "-on-".join(parts)) if parts else named.run


def _data_name(path: str) -> str:
    local = Path(path).expanduser()
    name = local.name.partition(".")[0] if local.exists() else path.removeprefix("bundled/")
    return safe_name(name.replace("/", "--"))


def _check_output(asked: Asked) -> None:
    """Makes sure that the results can be written, and that no other thing's are overwritten."""
    output = asked.output
    existing = next(place for place in (output.path, *output.path.absolute().parents) if os.path.lexists(place))
    if not existing.is_dir():
        raise UserError(f"{existing} is a file, so it cannot become a folder of results.", fix=_OTHER_FOLDER)
    if not os.access(existing, os.W_OK | os.X_OK):
        raise UserError(f"{existing} may not be written to.", fix=_OTHER_FOLDER)
    if asked.is_own_report:
        return
    if output.recipe.is_file():
        raise UserError(f"{output.path} is a run, so it cannot hold the results of something else.", fix=_OTHER_FOLDER)
    if output.report_json.is_file() and _identity_in(output.report_json) != asked.identity():
        raise UserError(f"{output.path} holds the results of another evaluation.", fix=_OTHER_FOLDER)


def _identity_in(report: Path) -> dict[str, Any] | None:
    try:
        subject = json.loads(report.read_text(encoding="utf-8"))["subject"]
        return {key: subject[key] for key in ("kind", "name", "place", "data")}
    except (ValueError, KeyError, TypeError):  # somebody else's file of that name
        return None
