"""Publishing in one commit: all files or none, compared afterwards with what was sent."""

from __future__ import annotations

from collections.abc import Sequence

from huggingface_hub import CommitOperationAdd, CommitOperationDelete

from lora_dpo.errors import UserError
from lora_dpo.hub.client import RETRIED_BY_THE_CLIENT, HubError, is_passing, patiently, status_of
from lora_dpo.hub.package import File, Package
from lora_dpo.hub.preflight import Plan
from lora_dpo.hub.remote import Remote

_ANOTHER_COMMIT = (409, 412)
"""Statuses of a commit that does not build upon the newest one, which may be ours."""


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
        verify(remote, package, commit, plan.stale)
    if remote.target.tag is not None and not plan.tag_is_set:
        _set_tag(remote, remote.target.tag, commit)
    return commit


def _set_tag(remote: Remote, tag: str, commit: str) -> None:
    try:
        remote.create_tag(tag, commit)
    except UserError as said:
        there = f"All files are published, as version {commit[:8]} of {remote.url}; only the tag is missing."
        raise UserError(said.what, why=f"{there} {said.why}".strip(), fix=said.fix or "Push again.") from None


def verify(remote: Remote, package: Package, commit: str, stale: Sequence[str] = ()) -> None:
    """Compares the files on the Hub with what was sent: names, sizes and hashes.

    Args:
        remote: The repository.
        package: What was sent.
        commit: Where to look.
        stale: Files that must be gone.

    Raises:
        UserError: Something differs.
    """
    if wrong := differences(remote, package, commit, stale) and differences(remote, package, commit, stale):
        raise UserError(
            f"What {remote.target.repo} lists is not what was sent: {'; '.join(wrong[:5])}.",
            why="Every file arrived under its hash, so this is a fault of the Hub, or of something in between.",
            fix=f"Look at version {commit[:8]} before you use it, and push again: what differs is sent again.",
        )


def differences(remote: Remote, package: Package, commit: str, stale: Sequence[str] = ()) -> list[str]:
    """Returns which files of a commit are not what was sent, or should be gone, in words."""
    there = remote.tree(commit)
    missing = [f"{file.path} is missing" for file in package.files if file.path not in there]
    other = [f for f in package.files if f.path in there and not there[f.path].is_same(f)]
    left = [f"{path} is still there" for path in stale if path in there]
    return missing + [f"{file.path} is another one" for file in other] + left


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
    # The client keeps it for itself; without the attribute, what is missing is found after the commit.
    if ignored := sorted(one.path_in_repo for one in additions if getattr(one, "_should_ignore", False)):
        raise UserError(
            f"The .gitignore of {remote.target.repo} keeps files of this push out: {', '.join(ignored[:5])}.",
            why="Without them what is published would not be whole. Nothing of this push is visible there.",
            fix="Remove the .gitignore on the Hub, or its lines for them, then push again.",
        )
    operations: Sequence[CommitOperationAdd | CommitOperationDelete] = [
        *additions,
        *(CommitOperationDelete(path) for path in plan.stale),
    ]

    def commit() -> str:
        done = remote.api.create_commit(
            **where, operations=operations, commit_message=_message(package), parent_commit=parent
        )
        return str(done.oid)

    def settled(error: Exception) -> str | None:
        return _made_all_the_same(remote, package, plan, parent) if _may_be_made(error) else None

    try:
        return patiently(commit, f"publishing in {remote.target.repo}", token=remote.token, settled=settled)
    except HubError as said:
        why = f"{said.why} Nothing of this push is visible there.".strip()
        raise UserError(said.what, why=why, fix=said.fix) from None


def _addition(file: File) -> CommitOperationAdd:
    addition = CommitOperationAdd(file.path, file.content if file.content is not None else str(file.place))
    addition.upload_info.sha256 = bytes.fromhex(file.sha256)  # known already: large files are not read once more
    return addition


def _may_be_made(error: Exception) -> bool:
    """Returns whether a commit may have been made though it failed: its answer got lost, or there is another one."""
    return is_passing(error) or status_of(error) in _ANOTHER_COMMIT


def _made_all_the_same(remote: Remote, package: Package, plan: Plan, parent: str) -> str | None:
    """Returns the commit if it was made and only the answer got lost; others may have followed it.

    Raises:
        UserError: Somebody else has made another one, or the Hub cannot be asked.
    """
    try:
        made = remote.commits_since(parent)
        ours = bool(made) and not differences(remote, package, made[-1], plan.stale)  # it builds upon `parent`
    except HubError as said:
        raise UserError(
            f"The answer to the commit got lost, so it is not known whether {remote.target.repo} has it: {said.what}",
            why="It holds everything or nothing of this push.",
            fix="Push again when the Hub answers: it looks, and sends only what is missing.",
        ) from None
    if made and not ours:
        raise UserError(
            f"Somebody else has changed {remote.target.repo} in the meantime: it is at {made[0][:8]} now.",
            why="Nothing of this push is visible there.",
            fix="Look at what has changed there, then push again; what has arrived is not sent again.",
        )
    return made[-1] if ours else None


def _message(package: Package) -> str:
    what = {"adapter": "an adapter", "model": "a model", "dataset": "a data set"}[package.kind]
    return f"Publish {what} with lora-dpo"
