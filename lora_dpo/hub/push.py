"""`lora-dpo push`: checks, shows what would happen, asks, and publishes."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import typer
from rich.filesize import decimal
from rich.table import Table

from lora_dpo.console import err, interrupts_are_seen, note, out, show_error
from lora_dpo.credentials import load_token
from lora_dpo.errors import UserError
from lora_dpo.hub.card import render_card
from lora_dpo.hub.client import hub_session
from lora_dpo.hub.package import Package
from lora_dpo.hub.packing import Wishes, facts_of, pack
from lora_dpo.hub.pending import pending_folder, pending_places, prepare, read_pending
from lora_dpo.hub.preflight import Plan, check_online, find_token, inspect, required_token
from lora_dpo.hub.publish import publish
from lora_dpo.hub.remote import Remote, Target
from lora_dpo.hub.secrets import check_nothing_private
from lora_dpo.hub.subject import Subject, Which, find_subject, hub_section
from lora_dpo.recipe.schema import HubSection

_FILES_SHOWN = 40


@dataclass(frozen=True, slots=True)
class Manner:
    """How far a push goes.

    Attributes:
        yes: Do not ask.
        dry_run: Stop after the checks.
        prepare: Keep it for later, and ask nothing of the Hub.
        verify_load: Load it back at the end, and compare.
        overwrite_card: Replace a card that somebody has written on the Hub.
    """

    yes: bool = False
    dry_run: bool = False
    prepare: bool = False
    verify_load: bool = False
    overwrite_card: bool = False


def push(word: str, repo: str | None, wishes: Wishes, manner: Manner, hub: HubSection | None = None) -> None:
    """Publishes a run, an adapter or a model.

    Args:
        word: Run folder, or folder of an adapter or a model.
        repo: Where to, `user/name`; None is what the recipe says.
        wishes: How; what is None is what the recipe says.
        manner: How far.
        hub: The recipe's section; None is that of the run.

    Raises:
        UserError: A check failed, or the Hub refused. Nothing is published then.
    """
    load_token()
    hub = hub or hub_section(word)
    subject, completed = find_subject(word, wishes.which or _what(hub)), wishes.completed(hub)
    target = target_of(repo or hub.repo, completed, private_is_asked=wishes.private is not None)
    package = _allowed(pack(subject, target.repo, completed, find_token()), manner)
    if manner.prepare:
        _show(package, target, None)
        if manner.dry_run:
            note("A dry run: nothing was kept.")
            return
        note(f"Kept in {prepare(target, package)}. On a machine with a network: lora-dpo push --pending")
        return
    send(target, package, manner, _verification(subject, package) if manner.verify_load else None)


def card_of(word: str, repo: str | None, wishes: Wishes) -> str:
    """Returns the card that would be published.

    Args:
        word: Run folder, or folder of an adapter or a model.
        repo: Where to, `user/name`; None is what the run's recipe says, or a name that shows that it is none.
        wishes: What the user says of base, licence and template.

    Raises:
        UserError: There is nothing there, or the template has a mistake.
    """
    hub = hub_section(word)
    subject, completed = find_subject(word, wishes.which or _what(hub)), wishes.completed(hub)
    facts = facts_of(subject, repo or hub.repo or f"YOUR_NAME/{subject.name}", completed)
    return render_card(subject, facts, completed.template_file)


def send(
    target: Target, package: Package, manner: Manner, afterwards: Callable[[Remote, str], None] | None = None
) -> None:
    """Publishes what has been collected and checked.

    Args:
        target: Where to.
        package: What.
        manner: How far.
        afterwards: Called with the repository and the commit once it is published.

    Raises:
        UserError: The Hub refused, or did not answer.
    """
    check_online()
    token, package = required_token(), _allowed(package, manner)
    with hub_session(token):
        remote = Remote(target, token)
        plan = inspect(remote, package)
        _show(package, target, plan)
        if manner.dry_run:
            note("A dry run: nothing was published.")
            return
        if plan.is_done and (target.tag is None or plan.tag_is_set):
            note("All of it is there already; there is nothing to do.")
        else:
            _ask(plan, manner)
        commit = publish(remote, package, plan)
        out.print(f"{remote.url}  version {commit[:8]}", soft_wrap=True)
        if afterwards is not None:
            afterwards(remote, commit)


def push_pending(manner: Manner) -> None:
    """Publishes all that was prepared; what fails stays, and the others go on.

    Args:
        manner: How far.

    Raises:
        UserError: There is nothing, or some of it failed.
    """
    load_token()
    waiting = pending_places()
    if not waiting:
        note(f"No push is pending in {pending_folder()}.")
        return
    failed = [place.name for place in waiting if not _sent(place, manner)]
    if failed:
        raise UserError(
            f"{len(failed)} of {len(waiting)} pending pushes failed: {', '.join(failed)}.",
            fix="They are kept; start `lora-dpo push --pending` again when what they say is mended.",
        )


def _sent(place: Path, manner: Manner) -> bool:
    try:
        one = read_pending(place)
        one.check_endpoint()
        one.check_unchanged()
        # The job may have had no token, which one of the files may hold.
        check_nothing_private(one.package.files, required_token())
        send(one.target, one.package, manner)
    except UserError as error:
        show_error(str(error))
        return False
    if not manner.dry_run:
        one.remove()
    return True


def _allowed(package: Package, manner: Manner) -> Package:
    """Returns a package with what the user allows it."""
    return replace(package, overwrites_card=True) if manner.overwrite_card else package


def _what(hub: HubSection) -> Which | None:
    return None if hub.what == "auto" else hub.what


def target_of(repo: str | None, wishes: Wishes, *, private_is_asked: bool = False) -> Target:
    """Returns where a push goes.

    Args:
        repo: The repository.
        wishes: How it is published, nothing left open.
        private_is_asked: Whether the command line says who may see it.

    Raises:
        UserError: The names are none.
    """
    if repo is None:
        raise UserError(
            "It is not said where to publish.", fix="Give the repository: lora-dpo push FOLDER user/name (or hub.repo)."
        )
    target = Target(repo, "model", bool(wishes.private), wishes.revision, wishes.tag, private_is_asked)
    target.check()
    return target


def _verification(subject: Subject, package: Package) -> Callable[[Remote, str], None]:
    from lora_dpo.hub.reload import check_loads

    return lambda remote, commit: check_loads(remote, commit, subject, package)


def _show(package: Package, target: Target, plan: Plan | None) -> None:
    """Prints what would be published, where, and what should be known of it."""
    new = {file.path for file in package.files} if plan is None else {file.path for file in plan.changes}
    table = Table(box=None, pad_edge=False)
    for heading, justify in (("file", "left"), ("size", "right"), ("", "left")):
        table.add_column(heading, justify="right" if justify == "right" else "left", overflow="fold")
    for file in package.files[:_FILES_SHOWN]:
        table.add_row(file.path, decimal(file.size), "" if file.path in new else "there already")
    if len(package.files) > _FILES_SHOWN:
        table.add_row(f"and {len(package.files) - _FILES_SHOWN} more", "", "")
    for path in plan.stale if plan else ():
        table.add_row(path, "", "removed")
    err.print(table)
    to_send = sum(file.size for file in package.files if file.path in new)
    err.print(f"{len(package.files)} files, {decimal(package.size)}, of which {decimal(to_send)} to send.")
    for line in _facts(package, target, plan):
        err.print(line, soft_wrap=True)


def _facts(package: Package, target: Target, plan: Plan | None) -> list[str]:
    private = target.private if plan is None else plan.private
    seen = "private" if private else "public: everybody can read it"
    new = "" if plan is None else "is there" if plan.exists else "will be made"
    branch = "" if target.revision == "main" else f", branch {target.revision}"
    tag = "" if target.tag is None else f", tag {target.tag}"
    where = f"To {target.repo}{branch}{tag}: {', '.join(part for part in (new, seen) if part)}."
    left_out = [f"Left out: {', '.join(package.left_out)}."] if package.left_out else []
    return [where, *package.remarks, *left_out]


def _ask(plan: Plan, manner: Manner) -> None:
    if manner.yes:
        return
    if not sys.stdin.isatty():
        raise UserError("Nobody is there to be asked whether to publish this.", fix="Add --yes.")
    with interrupts_are_seen():
        agreed = typer.confirm(f"Publish this as {plan.user}?", err=True)
    if not agreed:
        raise UserError("Nothing was published.")
