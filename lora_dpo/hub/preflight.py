"""What is checked on the Hub before a byte moves: the token, its rights, and what is there already."""

from __future__ import annotations

import hashlib
import os
import re
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any
from urllib.parse import urlsplit

from huggingface_hub import constants, get_token

from lora_dpo.errors import UserError
from lora_dpo.hub.client import offline_error
from lora_dpo.hub.package import CARD, MANIFEST, File, Package
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
    """Checks that the network is not switched off, and that the Hub's address is one.

    Raises:
        UserError: It is off, or HF_ENDPOINT is no address.
    """
    if constants.HF_HUB_OFFLINE:
        raise offline_error()
    address = urlsplit(constants.ENDPOINT)
    if address.scheme not in ("http", "https") or not address.netloc:
        raise UserError(
            f"HF_ENDPOINT is {constants.ENDPOINT!r}, which is no address.",
            fix=f"Did you mean 'https://{constants.ENDPOINT}'?" if "://" not in constants.ENDPOINT else "Correct it.",
        )


def required_token() -> str:
    """Returns the token.

    Raises:
        UserError: There is none, or it cannot be one.
    """
    token = find_token()
    if token and not (token.isascii() and token.isprintable() and " " not in token):
        raise UserError(
            "The Hub token holds characters that no token has.",
            why="It may have been cut, or copied with something beside it.",
            fix="Put it into .env again, as ACCESS_TOKEN=hf_...",
        )
    if token:
        return token
    raise UserError(
        "There is no Hub token, so nothing can be published.",
        why=f"None is in HF_TOKEN or ACCESS_TOKEN, nor in a .env file from {os.getcwd()} upwards, nor left by "
        "`hf auth login`.",
        fix="Make one with the role 'write' in the Hub's settings, and put ACCESS_TOKEN=hf_... into .env.",
    )


def check_rights(remote: Remote) -> tuple[str, str | None]:
    """Checks whose token it is, and that it may publish there.

    Args:
        remote: The repository.

    Returns:
        The user, and the newest commit of the main branch; None where there is no such repository yet.

    Raises:
        UserError: The token is not valid, or may not write there.
    """
    user = remote.whoami()
    _check_namespace(user, remote.target.repo)
    main = remote.head("main")
    if main is not None:
        remote.check_may_write()
    return str(user["name"]), main


def inspect(remote: Remote, package: Package) -> Plan:
    """Finds out what has to be done. Nothing is changed.

    Args:
        remote: The repository.
        package: What is published.

    Raises:
        UserError: The token is not valid or may not write there, the Hub has no such base model or does not take the
            card, the repository holds another model or a card of somebody's own, is not as private as was asked for, or
            the tag is on another version.
    """
    target = remote.target
    user, main = check_rights(remote)
    exists = main is not None
    private = _visibility(remote) if exists else target.private
    if package.base is not None:
        remote.check_base(package.base)
    card = next((file for file in package.files if file.path == CARD), None)
    if card is not None:
        remote.check_card(card.read().decode())
    head = main if target.revision == "main" or not exists else remote.head()
    commit = str(head or main)
    there = {} if not exists else remote.tree(commit)
    changes = [file for file in package.files if file.path not in there or not there[file.path].is_same(file)]
    known = remote.manifest(commit) if MANIFEST in there else {}
    ours = {file.path for file in package.files}
    stale = sorted((known.keys() & there.keys()) - ours)
    _check_nobody_else_s(sorted(there.keys() - ours - known.keys()), package, target.repo)
    if card in changes and CARD in there and not package.overwrites_card:
        _check_card_is_ours(remote.read(CARD, commit), known.get(CARD), package, target.repo)
    tag_is_set = False
    if exists and target.tag is not None and (tagged := remote.tags().get(target.tag)) is not None:
        if tagged != head or changes or stale:
            raise tag_error(target.tag, target.repo, tagged)
        tag_is_set = True
    return Plan(user, exists, private, head, changes, stale, tag_is_set)


def _visibility(remote: Remote) -> bool:
    """Returns whether the repository is private, which must be as it was asked for."""
    private, target = remote.is_private(), remote.target
    if target.private_is_asked and private != target.private:
        is_so, asked = ("private", "--public") if private else ("public", "--private")
        raise UserError(
            f"{target.repo} is {is_so} already, and {asked} does not change that.",
            fix="Leave it out, or change it in the repository's settings on the Hub.",
        )
    return private


def _check_card_is_ours(card: bytes, known: Any, package: Package, repo: str) -> None:
    """Refuses to replace what somebody has written on the Hub; metadata alone, as new repositories have, is no card."""
    if isinstance(known, dict):
        theirs = hashlib.sha256(card).hexdigest() != known.get("sha256")
    else:
        text = card.decode("utf-8", errors="replace").strip()
        theirs = bool(re.sub(r"\A---\n.*?\n---\s*\Z", "", text, flags=re.DOTALL))
    if theirs:
        keep = f"fetch it with `hf download {repo} {CARD} --local-dir .`, and give it as --template {CARD}"
        keep = "take its text into a repository of its own" if package.kind == "dataset" else keep
        raise UserError(
            f"The card of {repo} was written by somebody on the Hub, and would be lost.",
            why=f"Its {CARD} is not what an earlier push has put there.",
            fix=f"To keep it: {keep}. To replace it: --overwrite-card.",
        )


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
