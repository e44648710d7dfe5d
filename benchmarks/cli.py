"""What both scripts show and write."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.results import print_result, write_entries
from lora_dpo.console import err, out


@contextmanager
def working() -> Iterator[Callable[[str], None]]:
    """Yields a function that shows what is being done: a line that changes, or in a log one line after the other."""
    if not err.is_terminal:
        yield err.print
        return
    with err.status("") as status:
        yield status.update


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
