"""A repository on the Hub, asked about with patience."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

from huggingface_hub import HfApi, RepoCard, RepoFile
from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError
from huggingface_hub.utils import HFValidationError, validate_repo_id

from lora_dpo.errors import UserError, nearest
from lora_dpo.hub.client import RETRIED_BY_THE_CLIENT, is_of_the_hub, patiently, status_of
from lora_dpo.hub.package import MANIFEST, File

T = TypeVar("T")

_NEAR = 100
"""How many models are looked through for a name that was meant."""
_BRANCH = re.compile(r"(?!.*(\.\.|//|@\{))[\w][\w./-]*(?<![./])")


@dataclass(frozen=True, slots=True)
class Target:
    """Where something is published.

    Attributes:
        repo: Repository, `user/name`.
        repo_type: What kind it is, `model` or `dataset`.
        private: Whether it is private if it is made now.
        private_is_asked: Whether that was said for this push, so that one that is there must be so as well.
        revision: The branch.
        tag: Tag of the version, or None.
    """

    repo: str
    repo_type: str
    private: bool
    revision: str = "main"
    tag: str | None = None
    private_is_asked: bool = False

    def check(self) -> None:
        """Checks the names.

        Raises:
            UserError: One of them cannot be a name on the Hub.
        """
        try:
            validate_repo_id(self.repo)
            possible = self.repo.count("/") == 1
        except HFValidationError:
            possible = False
        if not possible:
            raise UserError(
                f"{self.repo!r} cannot be a repository on the Hub.",
                why="It is user/name or organisation/name, of letters of English, digits, '-', '_' and '.', begins and "
                "ends with a letter or digit, and has at most 96 of them in either half.",
                fix=f"Did you mean 'YOUR_NAME/{self.repo}'?" if re.fullmatch(r"[\w.-]+", self.repo) else "",
            )
        for what, value in (("--revision", self.revision), ("--tag", self.tag)):
            if value is not None and not _BRANCH.fullmatch(value):
                raise UserError(f"{what} {value!r} cannot be a name in git.", fix="Use letters, digits, '.', '-', '_'.")


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """A file as the Hub lists it; `sha256` of large ones only, else git's hash of the content."""

    size: int
    git_sha1: str
    sha256: str | None

    def is_same(self, file: File) -> bool:
        """Returns whether it is what a local file is."""
        if self.size != file.size:
            return False
        return self.sha256 == file.sha256 if self.sha256 is not None else self.git_sha1 == file.git_sha1()


class Remote:
    """A repository on the Hub.

    Args:
        target: Which one.
        token: The user's token.
    """

    def __init__(self, target: Target, token: str) -> None:
        self.target, self.token = target, token
        self.api = HfApi(token=token)
        self._where = {"repo_id": target.repo, "repo_type": target.repo_type}

    @property
    def url(self) -> str:
        """Its page."""
        return f"{self.api.endpoint}/{'datasets/' * (self.target.repo_type == 'dataset')}{self.target.repo}"

    def whoami(self) -> dict[str, Any]:
        """Returns whom the token belongs to, and what it may do."""
        return dict(self._patiently(self.api.whoami, "asking whose token it is"))

    def head(self, revision: str | None = None) -> str | None:
        """Returns the newest commit of the branch; None where there is no such repository or branch.

        Args:
            revision: Another branch than the target's.
        """

        def ask() -> str | None:
            try:
                revised = revision or self.target.revision
                return self.api.repo_info(**self._where, revision=revised).sha
            except (RepositoryNotFoundError, RevisionNotFoundError) as error:
                # The Hub says 401 of a private repository to a token that may not see it, and of a token that is none.
                if status_of(error) == 404:
                    return None
                raise

        return self._patiently(ask, f"looking for {self.target.repo}")

    def is_private(self) -> bool:
        """Returns whether it is private."""
        ask = self.api.repo_info
        info = self._patiently(lambda: ask(**self._where), f"looking at {self.target.repo}")
        return bool(info.private)

    def check_may_write(self) -> None:
        """Checks that the token may write to it: making a repository that is there succeeds with any token."""
        self._patiently(
            lambda: self.api.auth_check(**self._where, write=True), f"asking whether {self.target.repo} may be changed"
        )

    def tree(self, commit: str) -> dict[str, RemoteFile]:
        """Returns the files of a commit by path."""

        def ask() -> dict[str, RemoteFile]:
            entries = self.api.list_repo_tree(**self._where, revision=commit, recursive=True)
            return {
                entry.path: RemoteFile(entry.size, entry.blob_id, None if entry.lfs is None else entry.lfs.sha256)
                for entry in entries
                if isinstance(entry, RepoFile)
            }

        return self._patiently(ask, f"listing the files of {self.target.repo}", tries=RETRIED_BY_THE_CLIENT)

    def tags(self) -> dict[str, str]:
        """Returns the commit of each tag."""
        refs = self._patiently(
            lambda: self.api.list_repo_refs(**self._where), f"listing the tags of {self.target.repo}"
        )
        return {tag.name: tag.target_commit for tag in refs.tags}

    def commits_since(self, parent: str) -> list[str]:
        """Returns the branch's commits after one, the newest first."""
        ask = self.api.list_repo_commits
        found = self._patiently(
            lambda: ask(**self._where, revision=self.target.revision), f"listing the versions of {self.target.repo}"
        )
        return list(takewhile(lambda commit: commit != parent, (commit.commit_id for commit in found)))

    def read(self, path: str, commit: str) -> bytes:
        """Returns a small file of a commit."""

        def ask() -> bytes:
            with TemporaryDirectory() as folder:
                fetched = self.api.hf_hub_download(**self._where, filename=path, revision=commit, local_dir=folder)
                return Path(fetched).read_bytes()

        return self._patiently(ask, f"reading what {self.target.repo} has", tries=RETRIED_BY_THE_CLIENT)

    def manifest(self, commit: str) -> dict[str, Any]:
        """Returns the paths that an earlier push has put there; none where it was filled by other means."""
        try:
            content = json.loads(self.read(MANIFEST, commit))
            files = content["files"] if content["made_by"].startswith("lora-dpo") else {}
        except (ValueError, TypeError, KeyError, AttributeError):
            return {}
        return files if isinstance(files, dict) else {}

    def check_base(self, name: str) -> None:
        """Checks that the Hub has a model; one that this token may not read, as it is gated, is there.

        Args:
            name: Its Hub id.

        Raises:
            UserError: It has not.
        """

        def ask() -> bool:
            try:
                self.api.repo_info(name)
            except HfHubHTTPError as error:
                if status_of(error) not in (401, 403, 404):
                    raise
                return status_of(error) != 404
            return True

        if not self._patiently(ask, f"looking for the base model {name}"):
            near = nearest(name, self._named_like(name))
            raise UserError(
                f"The base model {name} is not on the Hub, or this token may not see it.",
                why="The card names it, and an adapter can only be loaded where it is.",
                fix=(f"Did you mean '{near}'? " if near else "")
                + "Name it with --base-model user/name (hub.base_model). If it is a folder, start where that lies.",
            )

    def _named_like(self, name: str) -> list[str]:
        """Returns the models of the same owner, and those of others that are called the same."""
        owner, _, own = name.rpartition("/")
        try:
            same = [found.id for found in self.api.list_models(author=owner, limit=_NEAR)] if owner else []
            return same + [found.id for found in self.api.list_models(search=own, limit=_NEAR)]
        except Exception as error:
            if not is_of_the_hub(error):
                raise
            return []  # it is only for a hint

    def check_card(self, card: str) -> None:
        """Lets the Hub check a card's metadata, which it would else refuse when everything has been sent.

        Args:
            card: The card.

        Raises:
            UserError: The Hub does not take it.
        """

        def ask() -> None:
            try:
                RepoCard(card, ignore_metadata_errors=True).validate(self.target.repo_type)
            except ValueError as error:
                if status_of(error) != 400:
                    raise
                raise UserError(
                    f"The Hub does not take the card's metadata: {' '.join(str(error).split())[:500]}",
                    fix="Correct the card's template.",
                ) from None

        self._patiently(ask, "asking whether the card can be read")

    def create(self) -> None:
        """Makes it, unless it is there."""

        def make() -> None:
            try:
                self.api.create_repo(**self._where, private=self.target.private)
            except HfHubHTTPError as error:
                if status_of(error) != 409:
                    raise

        self._patiently(make, f"making {self.target.repo}")

    def create_branch(self) -> None:
        """Makes the branch, unless it is there."""
        self._patiently(
            lambda: self.api.create_branch(**self._where, branch=self.target.revision, exist_ok=True),
            f"making the branch {self.target.revision}",
        )

    def create_tag(self, tag: str, commit: str) -> None:
        """Sets a tag; one that is there must be on the same commit.

        Raises:
            UserError: It is on another one, or was not set.
        """
        self._patiently(
            lambda: self.api.create_tag(**self._where, tag=tag, revision=commit, exist_ok=True),
            f"setting the tag {tag}",
        )
        found = self.tags().get(tag)
        if found is None:
            raise UserError(f"The Hub did not set the tag {tag} of {self.target.repo}.", fix="Push again.")
        if found != commit:
            raise tag_error(tag, self.target.repo, found)

    def _patiently(self, call: Callable[[], T], what: str, **tries: int) -> T:
        return patiently(call, what, token=self.token, **tries)


def tag_error(tag: str, repo: str, commit: str) -> UserError:
    """Returns the error for a tag that stands for something else already."""
    return UserError(
        f"The tag {tag} of {repo} is on another version, {commit[:8]}.",
        why="A tag is what others rely on, so it is never moved.",
        fix="Choose another --tag.",
    )
