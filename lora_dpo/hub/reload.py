"""Loading back what was published, as its users will, and comparing it with what was sent."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import torch

from lora_dpo.console import note
from lora_dpo.errors import UserError
from lora_dpo.hub.client import RETRIED_BY_THE_CLIENT, patiently
from lora_dpo.hub.package import File, Package
from lora_dpo.hub.remote import Remote
from lora_dpo.hub.subject import Subject

if TYPE_CHECKING:
    from torch import Tensor

_PROBE_TOKENS = 16


def check_loads(remote: Remote, commit: str, subject: Subject, package: Package) -> None:
    """Fetches what was published into an empty folder, loads it, and compares its logits with those of the local one.

    Args:
        remote: The repository.
        commit: The version.
        subject: What was published.
        package: Its files.

    Raises:
        UserError: Something differs.
    """
    with TemporaryDirectory() as folder:
        fetched = Path(folder)
        patiently(
            lambda: remote.api.snapshot_download(remote.target.repo, revision=commit, local_dir=fetched),
            f"fetching {remote.target.repo}",
            token=remote.token,
            tries=RETRIED_BY_THE_CLIENT,
        )
        for file in package.files:
            if not (fetched / file.path).is_file() or File.at(file.path, fetched / file.path).sha256 != file.sha256:
                raise UserError(f"{file.path} came back as another file than was sent.", fix="Push again.")
        base = _base(subject)
        ids = torch.arange(1, _PROBE_TOKENS + 1)[None]  # any will do, and an adapter may have no tokenizer
        if not torch.equal(_logits(subject.folder, base, ids), _logits(fetched, base, ids)):
            raise UserError(
                f"{remote.target.repo}, loaded back, is another model than {subject.folder}.",
                why="The files are the same, so it is how they are loaded.",
                fix="Please report this.",
            )
    note(f"{remote.target.repo} was fetched and loaded: all files and its logits are those of {subject.folder}.")


def _base(subject: Subject) -> dict[str, Any] | None:
    """Returns the base of an adapter, as it is known here."""
    if subject.kind == "model":
        return None
    if subject.recipe is not None:
        return subject.recipe.model.model_dump()
    from lora_dpo.evaluation.subjects import base_of, find

    return base_of(find(str(subject.folder)), None).model_dump()


def _logits(folder: Path, base: dict[str, Any] | None, ids: Tensor) -> Tensor:
    """Returns the logits of a probe; the model is forgotten after it, so that there is room for the other."""
    from lora_dpo.model.adapter import load_adapter
    from lora_dpo.model.base import load_model
    from lora_dpo.recipe.schema import ModelSection

    section = ModelSection(name=str(folder)) if base is None else ModelSection.model_validate(base)
    model: Any = load_model(section)
    model = model if base is None else load_adapter(str(folder), model)
    with torch.no_grad():
        return model.eval()(ids.to(model.device)).logits.cpu()
