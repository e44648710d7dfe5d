"""Shows that a long read goes on."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

from lora_dpo.console import err, is_main_process

_SILENT_SECONDS = 2.0
_ITEMS_BETWEEN_LOOKS = 256

T = TypeVar("T")


def counted(items: Iterable[T], label: str) -> Iterator[T]:
    """Yields the items; from the third second on, a line on stderr counts them (on a terminal, on rank 0).

    Args:
        items: What is read.
        label: What the line says before the count.
    """
    start = time.monotonic()
    status = None
    try:
        for number, item in enumerate(items, start=1):
            yield item
            if number % _ITEMS_BETWEEN_LOOKS or time.monotonic() - start < _SILENT_SECONDS:
                continue
            if status is None and err.is_terminal and is_main_process():
                status = err.status(label)
                status.start()
            if status is not None:
                status.update(f"{label}: {number:,} rows")
    finally:
        if status is not None:
            status.stop()
