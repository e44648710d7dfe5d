"""From what was trained to what is published: the files that travel, made portable, with a card, and checked."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lora_dpo.errors import UserError
from lora_dpo.hub.base import ADAPTER_CONFIG, Base, base_of
from lora_dpo.hub.card import Facts, render_card
from lora_dpo.hub.documents import read_json
from lora_dpo.hub.licence import Licence, config_of, licence_of
from lora_dpo.hub.package import CARD, File, Package, with_manifest
from lora_dpo.hub.portable import is_text, shortened, shortenings
from lora_dpo.hub.secrets import check_nothing_private
from lora_dpo.hub.selection import MERGE_REPORT, check_complete, has_tokenizer, select
from lora_dpo.hub.subject import TRAINING, Subject, Which
from lora_dpo.recipe.loading import to_yaml
from lora_dpo.recipe.run_folder import RunFolder
from lora_dpo.recipe.schema import HubSection


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

    @property
    def template_file(self) -> Path | None:
        """The user's template of the card; None where it is the package's."""
        return None if self.template is None else Path(self.template).expanduser()

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


def facts_of(subject: Subject, repo: str, wishes: Wishes) -> Facts:
    """Returns what a card says of base and licence.

    Args:
        subject: What is published.
        repo: Where to, `user/name`.
        wishes: What the user says of them.

    Raises:
        UserError: The licence that the user says is not the base's.
    """
    base = base_of(subject, wishes.base)
    return Facts(repo, base.name, _licence(subject, base, wishes.licence))


def pack(subject: Subject, repo: str, wishes: Wishes, token: str | None) -> Package:
    """Collects what is published, and checks it. Nothing is asked of the Hub.

    Args:
        subject: An adapter or a model.
        repo: Where to, `user/name`.
        wishes: How.
        token: The user's token, which must not be in any file.

    Raises:
        UserError: A file is missing or damaged, or holds what should not be published, or nobody else has the base or
            a tokenizer.
    """
    base = base_of(subject, wishes.base)
    if subject.kind == "adapter":
        check_base_of_adapter(base)
    local, left_out = select(subject.folder, subject.kind)
    check_complete(subject.folder, subject.kind, local, subject.record)
    files = {path: File.at(path, place) for path, place in local.items()}
    if subject.run is not None:
        files |= _of_the_training(subject.run)
    facts = Facts(repo, base.name, _licence(subject, base, wishes.licence))
    files[CARD] = File.of(CARD, render_card(subject, facts, wishes.template_file).encode())
    short = shortenings(_documents(subject, files), base.name, set(base.places))
    portable = {path: _portable(file, short, base.name) for path, file in files.items()}
    changed = sorted(path for path, file in portable.items() if file != files[path] and path != CARD)
    packed = with_manifest(portable.values())
    check_nothing_private(packed, token, short)
    remarks = list(_remarks(subject, base, facts.licence, files, changed))
    return Package(subject.kind, packed, left_out, remarks, base.name, overwrites_card=wishes.template is not None)


def check_base_of_adapter(base: Base) -> None:
    """Checks that others may have the base model of an adapter.

    Args:
        base: The base model.

    Raises:
        UserError: It is known under local names only.
    """
    if base.name is None:
        raise UserError(
            f"The adapter's base, {next(iter(base.places), 'which it does not name')}, is on this machine only.",
            why="Whoever loads the adapter needs the base from the Hub.",
            fix="Name it with --base-model user/name (hub.base_model), or publish the merged model.",
        )


def _remarks(
    subject: Subject, base: Base, licence: Licence, files: Mapping[str, File], changed: Sequence[str]
) -> Iterator[str]:
    """Yields what the user should know of what is published, a sentence each."""
    yield licence.remark(base.name or "the base model")
    if base.name is None:
        known = "is on this machine only" if base.places else "is not known"
        yield f"The base model {known}. Where it is on the Hub: --base-model user/name."
    if not has_tokenizer(files):
        if base.name is None:
            raise UserError(
                f"{subject.folder} has no tokenizer, so nobody could use what is published.",
                fix="Put it there with AutoTokenizer.from_pretrained(NAME).save_pretrained(FOLDER), or name the base "
                "that has it with --base-model user/name.",
            )
        yield f"There is no tokenizer in it, so the card takes that of {base.name}."
    if changed:
        yield f"Paths of this machine were shortened in {', '.join(changed)}."
    if f"{TRAINING}/report.json" not in files:
        yield "There is no report, so the card has no results."


def _licence(subject: Subject, base: Base, asked: str | None) -> Licence:
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
    for path in (ADAPTER_CONFIG, "config.json", MERGE_REPORT):
        if path in files:
            documents[path] = read_json(subject.folder / path)
    return documents


def _portable(file: File, short: dict[str, str], base: str | None) -> File:
    if not is_text(file.path):
        return file
    content = file.read()
    try:
        text = shortened(content.decode("utf-8"), short)
    except UnicodeDecodeError:
        return file  # a notice in an older encoding travels as it is; it is still searched for secrets
    if file.path == ADAPTER_CONFIG:
        config = json.loads(text)
        if config.get("base_model_name_or_path") != base:  # a folder's name may look like a Hub id
            text = json.dumps({**config, "base_model_name_or_path": base}, indent=2) + "\n"
    return file if text.encode() == content else File.of(file.path, text.encode())
