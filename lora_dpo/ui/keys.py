"""Single keys from a terminal, without waiting for the end of a line."""

from __future__ import annotations

import codecs
import os
import select
import sys
import termios
import tty
from collections.abc import Iterator
from contextlib import contextmanager

_ESCAPE_SECONDS = 0.2
"""How long the rest of an arrow key may take to arrive; lines over the network are slow."""
_INTERRUPT_SECONDS = 0.2
_NAMED = {
    "\x1b[D": "left", "\x1bOD": "left", "\x1b[C": "right", "\x1bOC": "right", "\x04": "end", "": "end",
    "\r": "enter", "\n": "enter",
}  # fmt: skip


def has_keyboard() -> bool:
    """Returns whether somebody can type here and see what is printed."""
    return sys.stdin.isatty() and sys.stdout.isatty()


@contextmanager
def single_keys() -> Iterator[None]:
    """Lets keys come one by one, unseen; Ctrl-C still interrupts."""
    before = termios.tcgetattr(sys.stdin)
    try:
        tty.setcbreak(sys.stdin, termios.TCSADRAIN)
        yield
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)


def forget_typed() -> None:
    """Forgets keys that were typed before their question was there."""
    termios.tcflush(sys.stdin, termios.TCIFLUSH)


def read_key() -> str:
    """Waits for a key.

    Returns:
        `left`, `right`, `enter`, `end` (Ctrl-D, or nobody is there any more), or the character in lower case; the empty
        text for other keys.
    """
    descriptor = sys.stdin.fileno()
    # A Ctrl-C that another thread has taken would not wake a read that waits for ever.
    while not select.select([descriptor], [], [], _INTERRUPT_SECONDS)[0]:
        pass
    typed = os.read(descriptor, 1)
    if typed == b"\x1b":
        while len(typed) < 3 and select.select([descriptor], [], [], _ESCAPE_SECONDS)[0]:
            typed += os.read(descriptor, 1)
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    text = decoder.decode(typed)
    while not text and typed:  # the first byte of a longer character
        text = decoder.decode(os.read(descriptor, 1))
    if text in _NAMED:
        return _NAMED[text]
    return text.lower() if len(text) == 1 and text.isprintable() else ""
