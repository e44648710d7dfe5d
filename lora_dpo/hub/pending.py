"""What was checked where there is no network, and waits to be sent where there is one.

A pending push is a folder in lora-dpo's cache, which jobs and login nodes share: `push.json`, and the files that were
written for the repository. Weights stay where they are; their hashes are kept, so that a change is noticed.
"""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock
from huggingface_hub import constants

from lora_dpo.errors import UserError
from lora_dpo.files import partial_path, remove, replace_folder, write_json, write_whole
from lora_dpo.hub.package import File, Package
from lora_dpo.hub.remote import Target
from lora_dpo.model.cache import cache_folder

_ORDER = "push.json"
_VERSION = 2


@dataclass(frozen=True, slots=True)
class Pending:
    """A push that waits.

    Attributes:
        place: Its folder.
        target: Where it goes.
        package: What it is.
        endpoint: The Hub that it was prepared for.
        order: The content of its push.json.
    """

    place: Path
    target: Target
    package: Package
    endpoint: str
    order: bytes

    def check_endpoint(self) -> None:
        """Checks that the Hub is the one that it was prepared for.

        Raises:
            UserError: It is another one.
        """
        if self.endpoint != constants.ENDPOINT:
            raise UserError(
                f"The push to {self.target.repo} was prepared for {self.endpoint}, not for {constants.ENDPOINT}.",
                fix=f"Set HF_ENDPOINT={self.endpoint}, or prepare it again.",
            )

    def check_unchanged(self) -> None:
        """Checks that the files are what they were.

        Raises:
            UserError: One has changed, or is gone.
        """
        for file in self.package.files:
            place = file.place
            if place is None:
                changed = file.sha256 != File.of(file.path, file.read()).sha256
            elif not place.is_file():
                raise UserError(
                    f"{place} is gone since the push to {self.target.repo} was prepared.",
                    fix="Prepare it again with `lora-dpo push --prepare`.",
                )
            else:
                changed = File.at(file.path, place).sha256 != file.sha256
            if changed:
                raise UserError(
                    f"{place or file.path} has changed since the push to {self.target.repo} was prepared.",
                    why="What was checked then is not what would be sent now.",
                    fix="Prepare it again with `lora-dpo push --prepare`.",
                )

    def remove(self) -> None:
        """Forgets it, unless a job has put another one in its place since it was read."""
        with _lock(self.place):
            file = self.place / _ORDER
            if file.is_file() and file.read_bytes() == self.order:
                remove(self.place)


def prepare(target: Target, package: Package) -> Path:
    """Keeps a push until there is a network; an earlier one to the same place is replaced.

    Args:
        target: Where it goes.
        package: What it is, checked.

    Returns:
        The folder that keeps it.
    """
    place = pending_folder() / _name_of(target)
    files = [
        {
            "path": file.path,
            "size": file.size,
            "sha256": file.sha256,
            "place": None if file.place is None else str(file.place.absolute()),
        }
        for file in package.files
    ]
    order = {
        "schema_version": _VERSION,
        "endpoint": constants.ENDPOINT,
        "target": asdict(target),
        "kind": package.kind,
        "files": files,
        "left_out": package.left_out,
        "remarks": package.remarks,
        "base": package.base,
        "overwrites_card": package.overwrites_card,
    }
    with _lock(place):
        partial = partial_path(place)
        remove(partial)
        for file in package.files:
            if file.content is not None:
                write_whole(partial / "files" / file.path, file.content)
        write_json(partial / _ORDER, order)
        replace_folder(partial, place)
    return place


def pending_places() -> list[Path]:
    """Returns the folders of all pushes that wait, the oldest first."""
    orders = sorted(pending_folder().glob(f"*/{_ORDER}"), key=lambda order: order.stat().st_mtime)
    return [order.parent for order in orders if not order.parent.name.startswith(".")]


def pending_folder() -> Path:
    """Returns where pushes wait."""
    return cache_folder() / "pending"


def read_pending(place: Path) -> Pending:
    """Returns a push that waits.

    Args:
        place: Its folder.

    Raises:
        UserError: It cannot be read.
    """
    order = place / _ORDER
    try:
        text = order.read_bytes()
        content: dict[str, Any] = json.loads(text)
        if content["schema_version"] != _VERSION:
            raise ValueError(f"its version is {content['schema_version']}, not {_VERSION}")
        files = [_file(place, entry) for entry in content["files"]]
        package = Package(
            content["kind"],
            files,
            content["left_out"],
            content["remarks"],
            content["base"],
            overwrites_card=content["overwrites_card"],
        )
        return Pending(place, Target(**content["target"]), package, content["endpoint"], text)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"The pending push cannot be read: {error}",
            fix=f"Prepare it again with `lora-dpo push --prepare`, or remove {place}.",
            where=str(order),
        ) from None


def _file(folder: Path, entry: dict[str, Any]) -> File:
    if entry["place"] is not None:
        return File(entry["path"], entry["size"], entry["sha256"], place=Path(entry["place"]))
    content = (folder / "files" / entry["path"]).read_bytes()
    return File(entry["path"], entry["size"], entry["sha256"], content=content)


def _lock(place: Path) -> FileLock:
    """Returns the lock of a pending push: jobs prepare it while a login node sends it."""
    place.parent.mkdir(parents=True, exist_ok=True)
    return FileLock(place.with_name(f".{place.name}.lock"))


def _name_of(target: Target) -> str:
    parts = [target.repo_type, *target.repo.split("/"), *([] if target.revision == "main" else [target.revision])]
    return "--".join(re.sub(r"[^\w.-]", "_", part) for part in parts)
