"""A sweep: one recipe with several values of a key, a run for each, and a table that compares them."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lora_dpo.errors import UserError, did_you_mean
from lora_dpo.evaluation.tables import comparisons, row
from lora_dpo.files import write_json, write_text
from lora_dpo.recipe.run_folder import RunFolder
from lora_dpo.recipe.schema import Recipe

DEFINITION = "sweep.json"
"""In a sweep's folder: what is compared, and, once the table has been made, how it came out."""
TABLE = "sweep.md"
_MOST_RUNS = 64
_COMPARED = ("MC0", "MC1", "MC2", "preference accuracy", "margin, nats", "loss, nats a token")
_PER_RUN = ("run.name", "run.folder", "run.resume")
_OUTER_COMMA = re.compile(r",(?![^\[{]*[\]}])")
_CAVEAT = (
    "All runs are measured on the same held-out questions. The best of several looks better than it is: what is chosen "
    "by this table should be measured once more on other questions."
)


@dataclass(frozen=True, slots=True)
class Variant:
    """One run of a sweep.

    Attributes:
        name: Its `run.name`.
        values: The values that tell it from the others, as they were written, by key.
    """

    name: str
    values: Mapping[str, str]

    @property
    def overrides(self) -> tuple[str, ...]:
        """What makes of the recipe that of this run."""
        return (*(f"{key}={value}" for key, value in self.values.items()), f"run.name={self.name}")


def parse_axes(words: Sequence[str]) -> dict[str, list[str]]:
    """Reads what `--array` was given.

    Args:
        words: `section.key=v1,v2,...`; commas within brackets divide nothing.

    Returns:
        The values of each key, as they were written.

    Raises:
        UserError: A word is no such thing, or the sweep would be no sweep, or a huge one.
    """
    axes: dict[str, list[str]] = {}
    for word in words:
        key, equals, text = word.partition("=")
        values = [value.strip() for value in _OUTER_COMMA.split(text)]
        if not equals or "." not in key or not all(values):
            raise UserError(
                f"--array {word} is not section.key=v1,v2,...", fix="For example: --array dpo.beta=0.05,0.1"
            )
        if key in _PER_RUN or key.startswith("slurm."):
            raise UserError(
                f"--array {word}: {key} is nothing to compare runs by.",
                fix="Each run gets a name of its own by itself.",
            )
        if key in axes or len(set(values)) < len(values):
            raise UserError(f"--array {word} names a {'key' if key in axes else 'value'} twice.")
        axes[key] = values
    count = 1
    for values in axes.values():
        count *= len(values)
    if not 1 < count <= _MOST_RUNS:
        raise UserError(
            f"--array asks for {count} run{'s' if count != 1 else ''}.",
            fix=f"Give two values or more, and {_MOST_RUNS} combinations at most.",
        )
    return axes


def variants(recipe: Recipe, axes: Mapping[str, Sequence[str]]) -> list[Variant]:
    """Returns the runs of a sweep, each with a name that says its values.

    Raises:
        UserError: Two of them would have the same name.
    """
    found = []
    for combination in itertools.product(*axes.values()):
        values = dict(zip(axes, combination, strict=True))
        words = [f"{_last(key)}-{_plain(value)}" for key, value in values.items()]
        found.append(Variant("-".join([recipe.run.name, *words]), values))
    names = [variant.name for variant in found]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise UserError(
            f"--array: two runs would be named {twice}.", fix="Name the values so that they differ in letters."
        )
    return found


def sweep_folder(recipe: Recipe, axes: Mapping[str, Sequence[str]]) -> Path:
    """Returns the folder of a sweep, beside those of its runs."""
    return RunFolder.of(recipe).path.with_name("-".join([recipe.run.name, "sweep", *map(_last, axes)]))


def write_definition(folder: Path, recipe: Recipe, axes: Mapping[str, Sequence[str]], runs: Sequence[Variant]) -> None:
    """Writes what is compared."""
    write_json(
        folder / DEFINITION,
        {
            "schema_version": 1,
            "name": folder.name,
            "recipe": recipe.run.name,
            "keys": list(axes),
            "runs": [{"run": variant.name, "values": dict(variant.values)} for variant in runs],
        },
    )


def is_sweep(folder: Path) -> bool:
    """Returns whether a folder is a sweep's."""
    return (folder / DEFINITION).is_file()


def read_definition(folder: Path) -> dict[str, Any]:
    """Returns what is compared.

    Raises:
        UserError: There is no sweep in this folder.
    """
    try:
        return json.loads((folder / DEFINITION).read_text(encoding="utf-8"))
    except FileNotFoundError:
        known = [str(file.parent) for file in sorted(Path("runs").glob(f"*/{DEFINITION}"))]
        raise UserError(f"{folder} is no sweep.", fix=did_you_mean(str(folder), known)) from None
    except ValueError as error:
        raise UserError(f"{folder / DEFINITION} cannot be read: {error}") from None


def runs_of(folder: Path) -> list[RunFolder]:
    """Returns the runs of a sweep."""
    return [RunFolder(folder.parent / entry["run"]) for entry in read_definition(folder)["runs"]]


def compare(folder: Path) -> dict[str, Any]:
    """Reads how the runs of a sweep came out, and writes sweep.json and sweep.md.

    Args:
        folder: The sweep's folder.

    Returns:
        What sweep.json holds.

    Raises:
        UserError: There is no sweep in this folder.
    """
    sweep = read_definition(folder)
    for entry, run in zip(sweep["runs"], runs_of(folder), strict=True):
        report = _report(run)
        entry["complete"] = report is not None
        entry["results"] = {} if report is None else _results(report)
        entry["verdict"] = None if report is None else report["verdict"]
    sweep["caveat"] = _CAVEAT
    write_json(folder / DEFINITION, sweep)
    write_text(folder / TABLE, markdown(sweep))
    return sweep


def table(sweep: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Returns headings and rows: a run each, with what was measured after its training, and the change.

    Args:
        sweep: What `compare` returned.
    """
    metrics = list(dict.fromkeys(name for entry in sweep["runs"] for name in entry["results"]))
    rows = [
        [
            *(entry["values"][key] for key in sweep["keys"]),
            *(_cell(name, entry["results"].get(name)) for name in metrics),
            entry["run"] if entry["complete"] else f"{entry['run']} (no report yet)",
        ]
        for entry in sweep["runs"]
    ]
    return [*sweep["keys"], *metrics, "run"], rows


def markdown(sweep: Mapping[str, Any]) -> str:
    """Returns the table as Markdown."""
    headings, rows = table(sweep)
    lines = [f"# {sweep['name']}", "", "After training, and the change with its 95 % interval.", ""]
    lines += [f"| {' | '.join(cells)} |" for cells in (headings, ["---"] * len(headings), *rows)]
    return "\n".join([*lines, "", sweep["caveat"], ""])


def _results(report: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the numbers that runs are compared by, with their kind."""
    return {
        name: {**{key: found[key] for key in ("before", "after", "difference", "ci95", "p", "n")}, "kind": kind}
        for name, found, kind in comparisons(report)
        if name in _COMPARED or name.startswith("judge ")
    }


def _cell(name: str, found: Mapping[str, Any] | None) -> str:
    if found is None:
        return "-"
    words = row(name, found, found["kind"])
    return f"{words.after} ({words.change}; {words.interval})"


def _report(run: RunFolder) -> dict[str, Any] | None:
    try:
        return json.loads(run.report_json.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _last(key: str) -> str:
    return key.rpartition(".")[2]


def _plain(value: str) -> str:
    return re.sub(r"[^A-Za-z0-9._]+", "-", value).strip("-.") or "empty"
