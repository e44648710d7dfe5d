"""From a file and `section.key=value` overrides to a checked `Recipe`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ValidationError

from lora_dpo import resources
from lora_dpo.errors import UserError, did_you_mean, nearest
from lora_dpo.recipe.schema import ModelSection, Recipe, RunSection
from lora_dpo.recipe.yaml_source import KeyPath, dump, parse_file, parse_value

_COMMAND_LINE = "command line"

M = TypeVar("M", bound=BaseModel)


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Reads a recipe and checks every value in it.

    Args:
        path: A YAML file, or the name of a recipe that comes with the package (`quickstart`).
        overrides: `section.key=value` words; values are read as in the file and replace it.

    Returns:
        The recipe with all defaults filled in.

    Raises:
        UserError: The file or an override is wrong; every mistake found is listed with its line.
    """
    file = find_recipe(path)
    values, lines = parse_file(file)
    # A section whose keys are all commented out is null in YAML; it means the defaults.
    values = {key: value for key, value in values.items() if value is not None or key not in Recipe.model_fields}
    return _overridden(values, {key: f"{file}:{line}" for key, line in lines.items()}, overrides, str(file))


def with_overrides(recipe: Recipe, overrides: Sequence[str]) -> Recipe:
    """Returns a recipe with some of its values replaced.

    Args:
        recipe: The recipe.
        overrides: `section.key=value` words.

    Raises:
        UserError: An override is wrong; every mistake found is listed.
    """
    return _overridden(recipe.model_dump(mode="json"), {}, overrides, _COMMAND_LINE)


def with_model_overrides(model: ModelSection, overrides: Sequence[str], free: Sequence[str]) -> ModelSection:
    """Returns how a model is loaded where nothing is trained, with some of it replaced.

    Args:
        model: The model.
        overrides: `model.KEY=VALUE` words.
        free: The keys that have a meaning there, such as `model.dtype`.

    Raises:
        UserError: An override is wrong, or its key has no meaning there.
    """
    recipe = with_overrides(Recipe(model=model, run=RunSection(name="none")), overrides)
    for key in (override.partition("=")[0] for override in overrides):
        if key not in free:
            raise UserError(
                f"{key} has no meaning where nothing is trained.", fix=f"What can be set: {', '.join(free)}."
            )
    return recipe.model


def _overridden(values: dict[str, Any], places: dict[KeyPath, str], overrides: Sequence[str], otherwise: str) -> Recipe:
    """Puts overrides among values and checks them all; `otherwise` is where a mistake stands that has no place."""
    for override in overrides:
        key_path, value = _parse_override(override)
        _put(values, key_path, value, override)
        places = {key: place for key, place in places.items() if key[: len(key_path)] != key_path}
        for length in range(2, len(key_path) + 1):
            places[key_path[:length]] = f"{_COMMAND_LINE}: {override}"
        places.setdefault(key_path[:1], f"{_COMMAND_LINE}: {override}")
    return checked(Recipe, values, places, otherwise)


def checked(model: type[M], values: dict[str, Any], places: dict[KeyPath, str], otherwise: str) -> M:
    """Returns the values of a file as what they describe.

    Args:
        model: What they describe: a recipe, a cluster profile.
        values: The values.
        places: Where each key stands, for errors.
        otherwise: Where a mistake stands that has no place.

    Raises:
        UserError: A value is wrong or a key unknown; every mistake found is listed with its place.
    """
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise UserError(_explain(model, error, values, places, otherwise)) from None


def find_recipe(path: str | Path) -> Path:
    """Returns the recipe's file: the path as it stands, or a shipped recipe of that name.

    Raises:
        UserError: There is neither.
    """
    candidate = Path(path).expanduser()
    if candidate.is_file():
        return candidate
    shipped = {file.stem: file for file in sorted(resources.folder("recipes").glob("*.yaml"))}
    name = candidate.name.removesuffix(".yaml")
    if str(candidate.parent) in (".", "recipes") and name in shipped:
        return shipped[name]
    if candidate.is_dir():
        raise UserError(f"{path} is a folder, not a recipe.", fix="Give the YAML file in it.")
    folder = candidate.parent
    beside = [str(file) for file in sorted(folder.glob("*.y*ml"))] if folder.is_dir() else []
    near = nearest(str(candidate), beside)
    raise UserError(
        f"There is no recipe {path}.", fix=f"Did you mean '{near}'?" if near else did_you_mean(name, shipped)
    )


def to_yaml(recipe: Recipe) -> str:
    """Returns the whole recipe as YAML, every default written out."""
    return dump(recipe.model_dump(mode="json"), width=100)


def _parse_override(text: str) -> tuple[KeyPath, Any]:
    key, equals, value = text.partition("=")
    if not equals or not all(key.split(".")):
        raise UserError(f"'{text}' is not section.key=value.", fix="For example: train.learning_rate=1e-5")
    return tuple(key.split(".")), parse_value(value, f"{_COMMAND_LINE}: {text}")


def _put(values: dict[str, Any], key_path: KeyPath, value: Any, override: str) -> None:
    section = values
    for depth, key in enumerate(key_path[:-1], start=1):
        child = section.get(key)
        if child is None or (isinstance(child, str) and depth > 1):  # `pairs: best` gives way to `pairs.sample=3`
            child = section[key] = {}
        if not isinstance(child, dict):
            raise UserError(f"'{override}': {'.'.join(map(str, key_path[:depth]))} is no section.")
        section = child
    section[key_path[-1]] = value


def _explain(
    model: type[BaseModel], error: ValidationError, values: dict[str, Any], places: dict[KeyPath, str], otherwise: str
) -> str:
    problems: dict[KeyPath, Any] = {}
    for problem in error.errors(include_url=False):
        problems.setdefault(_path_in_values(problem, values), problem)  # a union reports each of its branches
    lines = []
    for path, problem in problems.items():
        if any(len(other) > len(path) and other[: len(path)] == path for other in problems):
            continue  # the deeper problem says it more exactly
        place = next((places[path[:n]] for n in range(len(path), 0, -1) if path[:n] in places), otherwise)
        lines.append(f"{place}: {_sentence(model, problem, path)}")
    return "\n".join(lines)


def _path_in_values(problem: Any, values: Any) -> KeyPath:
    """Drops the names of union branches, which pydantic puts into its locations."""
    path: list[str | int] = []
    node = values
    last = len(problem["loc"]) - 1
    for position, part in enumerate(problem["loc"]):
        named_by_problem = position == last and problem["type"] in {"missing", "extra_forbidden"}
        if isinstance(node, dict) and (part in node or named_by_problem):
            path.append(part)
            node = node.get(part)
        elif isinstance(node, list) and isinstance(part, int) and part < len(node):
            path.append(part)
            node = node[part]
    return tuple(path)


def _sentence(root: type[BaseModel], problem: Any, path: KeyPath) -> str:
    key = ".".join(map(str, path))
    kind, value = problem["type"], problem.get("input")
    if kind == "extra_forbidden":
        return f"unknown key '{key}'. {_suggest_key(root, path)}"
    if kind == "missing":
        return f"'{key}' is missing. {_describe(root, path)}".rstrip()
    if kind == "literal_error":
        expected = problem["ctx"]["expected"]
        names = [name.strip().strip("'") for name in expected.replace(" or ", ", ").split(",")]
        return f"{key}: {value!r} is not one of {expected}. {did_you_mean(str(value), names)}"
    if kind == "bool_parsing":
        return f"{key}: {value!r} is neither true nor false. {did_you_mean(value, ['true', 'false'])}"
    if kind == "model_type":
        return f"{key}: should be a section with keys of its own, not {value!r}"
    if kind == "too_short":
        return f"{key}: is empty. {_describe(root, path)}".rstrip()
    if kind == "string_pattern_mismatch":
        return f"{key}: {value!r} cannot be used. {_describe(root, path)}".rstrip()
    text = problem["msg"].removeprefix("Value error, ")
    text = text[0].lower() + text[1:]
    if kind == "value_error":
        return f"{key}: {text}" if key else text
    return f"{key}: {text}, not {value!r}"


def _suggest_key(root: type[BaseModel], path: KeyPath) -> str:
    model = _model_at(root, path[:-1])
    siblings = list(model.model_fields) if model else []
    wanted = str(path[-1])
    near = nearest(wanted, siblings)
    if near is not None:
        return f"Did you mean '{'.'.join([*map(str, path[:-1]), near])}'?"
    elsewhere = [full for full in all_keys(root) if full.rpartition(".")[2] == wanted]
    elsewhere.sort(key=lambda full: not full.startswith("train."))
    return f"Did you mean '{elsewhere[0]}'?" if elsewhere else did_you_mean(wanted, siblings)


def _describe(root: type[BaseModel], path: KeyPath) -> str:
    model = _model_at(root, path[:-1])
    field = model.model_fields.get(str(path[-1])) if model else None
    return (field.description or "") if field else ""


def _model_at(root: type[BaseModel], path: Iterable[str | int]) -> type[BaseModel] | None:
    model: type[BaseModel] | None = root
    for part in path:
        if isinstance(part, int):
            continue
        field = model.model_fields.get(part) if model else None
        model = _section_type(field.annotation) if field else None
    return model


def _section_type(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next(filter(None, map(_section_type, get_args(annotation))), None)


def all_keys(model: type[BaseModel] = Recipe, prefix: str = "") -> list[str]:
    """Returns every key of the recipe as `section.key`, in the schema's order."""
    keys = []
    for name, field in model.model_fields.items():
        section = _section_type(field.annotation)
        keys += all_keys(section, f"{prefix}{name}.") if section else [f"{prefix}{name}"]
        if section and field.annotation is not section:
            keys.append(f"{prefix}{name}")
    return keys
