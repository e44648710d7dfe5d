"""What both scripts show and write."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.results import print_result, write_entries
from lora_dpo.console import err, out
from lora_dpo.errors import UserError, did_you_mean


@contextmanager
def working() -> Iterator[Callable[[str], None]]:
    """Yields a function that shows what is being done: a line that changes, or in a log one line after the other."""
    if not err.is_terminal:
        yield err.print
        return
    with err.status("") as status:
        yield status.update


def check_names(given: Iterable[str], known: Iterable[str]) -> None:
    """Refuses a name that is not known.

    Raises:
        UserError: There is one.
    """
    for unknown in (name for name in given if name not in known):
        raise UserError(f"There is no {unknown!r} here.", fix=did_you_mean(unknown, known))


def report(name: str, entry: dict[str, Any], file: Path, *, fresh: bool) -> None:
    """Prints a workload's numbers and adds them to the JSON file.

    Args:
        name: The workload's name, in front of which other models than the default write theirs.
        entry: What `summarise` returned.
        file: The JSON file.
        fresh: Drop what is in the file.
    """
    print_result(name, entry, out)
    write_entries(file, {name: entry}, fresh=fresh)
