"""What is checked on the Hub before a byte moves: the token, its rights, and what is there already."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from huggingface_hub import constants, get_token

from lora_dpo.errors import UserError
from lora_dpo.hub.client import offline_error
from lora_dpo.hub.package import MANIFEST, File, Package
from lora_dpo.hub.remote import Remote, tag_error

_OF_A_MODEL = (
    *("*.safetensors", "*.bin", "*.pt", "*.gguf", "*.index.json", "config.json", "adapter_config.json"),
    *("tokenizer*", "chat_template*", "generation_config.json"),
)
"""Files that would be loaded together with ours, or instead of them."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What a push is going to do.

    Attributes:
        user: Whom the token belongs to.
        exists: Whether the repository is there.
        private: Whether it is private, or will be.
        head: The commit of the branch; None where there is none yet.
        changes: The files that are new or others than on the Hub.
        stale: Files of an earlier push that are none of this one.
        tag_is_set: Whether the tag is there already, on this version.
    """

    user: str
    exists: bool
    private: bool
    head: str | None
    changes: list[File]
    stale: list[str]
    tag_is_set: bool

    @property
    def is_done(self) -> bool:
        """Whether the files are on the Hub already."""
        return self.head is not None and not self.changes and not self.stale


def find_token() -> str | None:
    """Returns the token of the environment, of `.env`, which `load_token` has looked at, or of `hf auth login`."""
    return get_token()


def check_online() -> None:
    """Checks that the network is not switched off.

    Raises:
        UserError: It is.
    """
    if constants.HF_HUB_OFFLINE:
        raise offline_error()


def required_token() -> str:
    """Returns the token.

    Raises:
        UserError: There is none.
    """
    if token := find_token():
        return token
    raise UserError(
        "There is no Hub token, so nothing can be published.",
        why=f"None is in HF_TOKEN or ACCESS_TOKEN, nor in a .env file from {os.getcwd()} upwards, nor left by "
        "`hf auth login`.",
        fix="Make one with the role 'write' in the Hub's settings, and put ACCESS_TOKEN=hf_... into .env.",
    )


def inspect(remote: Remote, package: Package) -> Plan:
    """Finds out what has to be done. Nothing is changed.

    Args:
        remote: The repository.
        package: What is published.

    Raises:
        UserError: The token is not valid or may not write there, the repository holds another model, or the tag is
            on another version.
    """
    target = remote.target
    user = remote.whoami()
    _check_namespace(user, target.repo)
    main = remote.head("main")
    exists = main is not None
    if exists:
        remote.check_may_write()
    head = main if target.revision == "main" or not exists else remote.head()
    there = {} if not exists else remote.tree(str(head or main))
    changes = [file for file in package.files if file.path not in there or not there[file.path].is_same(file)]
    known = remote.manifest(str(head or main)) if MANIFEST in there else {}
    ours = {file.path for file in package.files}
    stale = sorted((known.keys() & there.keys()) - ours)
    _check_nobody_else_s(sorted(there.keys() - ours - known.keys()), package, target.repo)
    tag_is_set = False
    if exists and target.tag is not None and (tagged := remote.tags().get(target.tag)) is not None:
        if tagged != head or changes or stale:
            raise tag_error(target.tag, target.repo, tagged)
        tag_is_set = True
    private = remote.is_private() if exists else target.private
    return Plan(str(user["name"]), exists, private, head, changes, stale, tag_is_set)


def _check_namespace(user: dict[str, Any], repo: str) -> None:
    owner = repo.split("/")[0]
    token = user.get("auth", {}).get("accessToken", {})
    if token.get("role") == "read":
        raise UserError(
            f"The token of {user['name']} may only read.",
            fix="Make one with the role 'write' in the Hub's settings, and put it into .env as ACCESS_TOKEN.",
        )
    orgs = {org["name"]: org.get("roleInOrg") for org in user.get("orgs", [])}
    if owner not in (user["name"], *orgs):
        member = ", ".join([user["name"], *orgs])
        raise UserError(
            f"{user['name']} may not publish as {owner}.",
            why=f"The token belongs to {user['name']}, who may publish as: {member}.",
            fix=f"Did you mean '{user['name']}/{repo.split('/')[1]}'?",
        )
    if orgs.get(owner) == "read" and owner != user["name"]:
        raise UserError(
            f"{user['name']} may only read in the organisation {owner}.", fix="Ask its admins to let you write."
        )


def _check_nobody_else_s(others: list[str], package: Package, repo: str) -> None:
    patterns = _OF_A_MODEL if package.kind != "dataset" else ("*.parquet", "*.jsonl", "*.csv", "*.arrow")
    foreign = [path for path in others if any(PurePath(path).match(pattern) for pattern in patterns)]
    if foreign:
        names = ", ".join(foreign[:5]) + (" and more" if len(foreign) > 5 else "")
        raise UserError(
            f"{repo} holds files of another {package.kind}: {names}.",
            why="They were not put there by this command, and would be loaded together with what is published now.",
            fix="Publish to another repository or to another --revision, or remove them on the Hub first.",
        )
