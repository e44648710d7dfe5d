"""Publishing in one commit: all files or none, compared afterwards with what was sent."""

from __future__ import annotations

import time
from collections.abc import Sequence

from huggingface_hub import CommitOperationAdd, CommitOperationDelete

from lora_dpo.console import note
from lora_dpo.errors import UserError
from lora_dpo.hub.client import (
    RETRIED_BY_THE_CLIENT,
    WAITS_SECONDS,
    brief,
    explain,
    is_of_the_hub,
    is_passing,
    patiently,
    status_of,
    without_secrets,
)
from lora_dpo.hub.package import File, Package
from lora_dpo.hub.preflight import Plan
from lora_dpo.hub.remote import Remote

_RACE = (409, 412)


def publish(remote: Remote, package: Package, plan: Plan) -> str:
    """Carries a plan out.

    Args:
        remote: The repository.
        package: What is published.
        plan: What `inspect` found.

    Returns:
        The commit.

    Raises:
        UserError: It did not succeed; the repository then is as it was, up to a failed tag.
    """
    if plan.is_done:
        commit = str(plan.head)
    else:
        commit = _commit(remote, package, plan, _ready(remote, plan))
        verify(remote, package, commit)
    if remote.target.tag is not None and not plan.tag_is_set:
        remote.create_tag(remote.target.tag, commit)
    return commit


def verify(remote: Remote, package: Package, commit: str) -> None:
    """Compares the files on the Hub with what was sent: names, sizes and hashes.

    Args:
        remote: The repository.
        package: What was sent.
        commit: Where to look.

    Raises:
        UserError: Something differs.
    """
    if wrong := differences(remote, package, commit) and differences(remote, package, commit):
        raise UserError(
            f"What {remote.target.repo} lists is not what was sent: {'; '.join(wrong[:5])}.",
            why="Every file arrived under its hash, so this is a fault of the Hub, or of something in between.",
            fix=f"Look at version {commit[:8]} before you use it, and push again: what differs is sent again.",
        )


def differences(remote: Remote, package: Package, commit: str) -> list[str]:
    """Returns which files of a commit are not what was sent, in words."""
    there = remote.tree(commit)
    missing = [f"{file.path} is missing" for file in package.files if file.path not in there]
    other = [f for f in package.files if f.path in there and not there[f.path].is_same(f)]
    return missing + [f"{file.path} is another one" for file in other]


def _ready(remote: Remote, plan: Plan) -> str:
    """Makes repository and branch where they are not there; returns the commit to build upon."""
    if not plan.exists:
        remote.create()
        remote.check_may_write()
    head = plan.head or remote.head()
    if head is None:
        remote.create_branch()
        head = remote.head()
    if head is None:
        raise UserError(f"{remote.target.repo} was made, but the Hub does not find it.", fix="Push again in a minute.")
    return head


def _commit(remote: Remote, package: Package, plan: Plan, parent: str) -> str:
    """Uploads what is missing, then makes the one commit that shows it."""
    if not plan.changes and not plan.stale:
        return parent
    additions = [_addition(file) for file in plan.changes]
    where = {"repo_id": remote.target.repo, "repo_type": remote.target.repo_type, "revision": remote.target.revision}
    sending = f"sending {len(additions)} files to {remote.target.repo}"
    patiently(
        lambda: remote.api.preupload_lfs_files(**where, additions=additions, free_memory=False),
        sending,
        token=remote.token,
        tries=RETRIED_BY_THE_CLIENT,
    )
    operations: Sequence[CommitOperationAdd | CommitOperationDelete] = [
        *additions,
        *(CommitOperationDelete(path) for path in plan.stale),
    ]
    what, waits = f"publishing in {remote.target.repo}", iter(WAITS_SECONDS)
    while True:
        try:
            done = remote.api.create_commit(
                **where, operations=operations, commit_message=_message(package), parent_commit=parent
            )
            return str(done.oid)
        except Exception as error:
            if not is_of_the_hub(error) and not isinstance(error, ValueError):
                raise
            if (found := _made_all_the_same(remote, package, parent)) is not None:
                return found
            wait = next(waits, None)
            if not is_passing(error) or wait is None:
                raise _not_published(error, what, remote) from None
            note(f"{what}: {without_secrets(brief(error), remote.token)}; once more in {wait:g} s.")
            time.sleep(wait)


def _addition(file: File) -> CommitOperationAdd:
    addition = CommitOperationAdd(file.path, file.content if file.content is not None else str(file.place))
    addition.upload_info.sha256 = bytes.fromhex(file.sha256)  # known already: large files are not read once more
    return addition


def _made_all_the_same(remote: Remote, package: Package, parent: str) -> str | None:
    """Returns the commit if it was made and only the answer got lost.

    Raises:
        UserError: Somebody else has made another one.
    """
    head = remote.head()
    if head in (None, parent):
        return None
    if not differences(remote, package, str(head)):
        return head
    raise UserError(
        f"Somebody else has changed {remote.target.repo} in the meantime: it is at {str(head)[:8]} now.",
        why="Nothing of this push is visible there.",
        fix="Look at what has changed there, then push again; what has arrived is not sent again.",
    )


def _not_published(error: Exception, what: str, remote: Remote) -> UserError:
    if status_of(error) is None and isinstance(error, ValueError) and "metadata" in str(error):
        first = " ".join(str(error).split())
        return UserError(f"The Hub does not take the card's metadata: {first}", fix="Correct the card's template.")
    said = explain(error, what, remote.token)
    return UserError(said.what, why=f"{said.why} Nothing of this push is visible there.".strip(), fix=said.fix)


def _message(package: Package) -> str:
    what = {"adapter": "an adapter", "model": "a model", "dataset": "a data set"}[package.kind]
    return f"Publish {what} with lora-dpo"
