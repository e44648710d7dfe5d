"""From what was trained to what is published: the files that travel, made portable, with a card, and checked."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from huggingface_hub import try_to_load_from_cache

from lora_dpo.errors import UserError
from lora_dpo.hub.card import Facts, render_card
from lora_dpo.hub.licence import Licence, config_of, licence_of
from lora_dpo.hub.package import File, Package, with_manifest
from lora_dpo.hub.portable import is_text, shortened, shortenings
from lora_dpo.hub.results import is_hub_name
from lora_dpo.hub.secrets import check_nothing_private
from lora_dpo.hub.selection import check_complete, select
from lora_dpo.hub.subject import TRAINING, Subject, Which
from lora_dpo.recipe.loading import to_yaml
from lora_dpo.recipe.run_folder import RunFolder
from lora_dpo.recipe.schema import HubSection

_ADAPTER_CONFIG = "adapter_config.json"


@dataclass(frozen=True, slots=True)
class Wishes:
    """How something is published; None is what the run's recipe says, or the usual.

    Attributes:
        which: What of a run.
        private: Whether a new repository is private.
        revision: The branch.
        tag: Tag of the version.
        base: Hub id of the base model.
        licence: The Hub's name of the licence.
        template: The user's own template of the card.
    """

    which: Which | None = None
    private: bool | None = None
    revision: str = "main"
    tag: str | None = None
    base: str | None = None
    licence: str | None = None
    template: str | None = None

    def completed(self, hub: HubSection) -> Wishes:
        """Returns these wishes, with what a recipe says where they are silent."""
        return replace(
            self,
            private=hub.private if self.private is None else self.private,
            tag=self.tag or hub.tag,
            base=self.base or hub.base_model,
            licence=self.licence or hub.license,
            template=self.template or hub.template,
        )


@dataclass(frozen=True, slots=True)
class _Base:
    """The base model: its Hub id, the names that it has on this machine, and where it lies here."""

    name: str | None
    places: set[str]
    folder: Path | None


def facts_of(subject: Subject, repo: str, wishes: Wishes) -> Facts:
    """Returns what a card says of base and licence.

    Args:
        subject: What is published.
        repo: Where to, `user/name`.
        wishes: What the user says of them.

    Raises:
        UserError: The licence that the user says is not the base's.
    """
    base = _base_of(subject, wishes.base)
    return Facts(repo, base.name, _licence(subject, base, wishes.licence))


def pack(subject: Subject, repo: str, wishes: Wishes, token: str | None) -> Package:
    """Collects what is published, and checks it. Nothing is asked of the Hub.

    Args:
        subject: An adapter or a model.
        repo: Where to, `user/name`.
        wishes: How.
        token: The user's token, which must not be in any file.

    Raises:
        UserError: A file is missing or damaged, or holds what should not be published, or nobody else has the base.
    """
    base = _base_of(subject, wishes.base)
    if subject.kind == "adapter" and base.name is None:
        raise UserError(
            f"The adapter's base, {min(base.places, default='which it does not name')}, is on this machine only.",
            why="Whoever loads the adapter needs the base from the Hub.",
            fix="Name it with --base-model user/name (hub.base_model), or publish the merged model.",
        )
    local, left_out = select(subject.folder, subject.kind)
    check_complete(subject.folder, subject.kind, local, subject.record)
    files = {path: File.at(path, place) for path, place in local.items()}
    if subject.run is not None:
        files |= _of_the_training(subject.run)
    licence = _licence(subject, base, wishes.licence)
    template = None if wishes.template is None else Path(wishes.template).expanduser()
    card = render_card(subject, Facts(repo, base.name, licence), template)
    files["README.md"] = File.of("README.md", card.encode())
    short = shortenings(_documents(subject, files), base.name, base.places)
    portable = {path: _portable(file, short, base.name) for path, file in files.items()}
    changed = sorted(path for path, file in portable.items() if file != files[path] and path != "README.md")
    remarks = [licence.remark(base.name or "the base model")]
    if base.name is None:
        remarks.append("The base model is on this machine only. Where it is on the Hub: --base-model user/name.")
    if changed:
        remarks.append(f"Paths of this machine were shortened in {', '.join(changed)}.")
    if f"{TRAINING}/report.json" not in files:
        remarks.append("There is no report, so the card has no results.")
    packed = with_manifest(portable.values())
    check_nothing_private(packed, token)
    return Package(subject.kind, packed, left_out, remarks)


def _base_of(subject: Subject, asked: str | None) -> _Base:
    """Finds the base model by what the record, the recipe, the adapter's configuration and the user say of it."""
    said = [(subject.record or {}).get("model", {}).get("name")]
    said += [subject.recipe.model.name if subject.recipe is not None else None]
    if subject.kind == "adapter":
        said.append(_adapter_config(subject)["base_model_name_or_path"])
    names = [name for name in dict.fromkeys(said) if name]
    # In order: a merged model's own base comes before that of its last training.
    on_hub = names[0] if names and is_hub_name(names[0]) else None
    name = asked or on_hub
    local = {place for place in names if not is_hub_name(place)}
    folders = [Path(place).expanduser() for place in local if Path(place).expanduser().is_dir()]
    return _Base(name, local, next(iter(folders), None) or _cached(name))


def _adapter_config(subject: Subject) -> dict[str, Any]:
    file = subject.folder / _ADAPTER_CONFIG
    try:
        return {"base_model_name_or_path": None, **json.loads(file.read_text(encoding="utf-8"))}
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"{file} cannot be read: {error}", fix="Copy it again from where it was made.") from None


def _cached(name: str | None) -> Path | None:
    found = try_to_load_from_cache(name, "config.json") if name else None
    return Path(found).parent if isinstance(found, str) else None


def _licence(subject: Subject, base: _Base, asked: str | None) -> Licence:
    config = config_of(subject.folder if subject.kind == "model" else base.folder)
    return licence_of(base.name, config, base.folder, asked)


def _of_the_training(run: RunFolder) -> dict[str, File]:
    """Returns what a run says of itself, without where it was to be published."""
    recipe = run.load_recipe()
    published = recipe.model_copy(update={"hub": HubSection()})
    report = run.report_md.read_text(encoding="utf-8") if run.report_md.is_file() else ""
    texts = {
        "recipe.yaml": to_yaml(published),
        "report.md": report.replace("](provenance.json)", "](../provenance.json)"),
    }
    files = [File.of(f"{TRAINING}/{name}", text.encode()) for name, text in texts.items() if text]
    files.append(File.at(f"{TRAINING}/report.json", run.report_json))
    files += [File.at(f"{TRAINING}/plots/{picture.name}", picture) for picture in sorted(run.plots.glob("*.png"))]
    return {file.path: file for file in files}


def _documents(subject: Subject, files: dict[str, File]) -> dict[str, Any]:
    """Returns the documents that name paths on purpose."""
    documents = {"record": subject.record, "recipe": subject.recipe and subject.recipe.model_dump(mode="json")}
    for path in (_ADAPTER_CONFIG, "config.json", "merge_report.json"):
        if path in files:
            documents[path] = json.loads(files[path].read())
    return documents


def _portable(file: File, short: dict[str, str], base: str | None) -> File:
    if not is_text(file.path):
        return file
    content = file.read()
    text = shortened(content.decode("utf-8"), short)
    if file.path == _ADAPTER_CONFIG:
        config = json.loads(text)
        if config.get("base_model_name_or_path") != base:  # a folder's name may look like a Hub id
            text = json.dumps({**config, "base_model_name_or_path": base}, indent=2) + "\n"
    return file if text.encode() == content else File.of(file.path, text.encode())
