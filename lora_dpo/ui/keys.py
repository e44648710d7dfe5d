"""Single keys from a terminal, without waiting for the end of a line."""

from __future__ import annotations

import codecs
import os
import re
import select
import sys
import termios
import tty
from collections.abc import Iterator
from contextlib import contextmanager

_ESCAPE_SECONDS = 0.2
"""How long the rest of an arrow key may take to arrive; lines over the network are slow."""
_ESCAPE = re.compile(rb"\x1b+([^\x1b\[O]|[\[O][ -?]*[@-Z\\-~]|\[\[.)", re.DOTALL)
"""A whole escape sequence: parameters and a final byte (ECMA-48, 5.4); the Linux console's F keys begin with `[[`."""
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
        typed = _escape_sequence(descriptor)
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    text = decoder.decode(typed)
    while typed and not text:  # the first byte of a longer character
        typed = os.read(descriptor, 1)
        text = decoder.decode(typed)
    if text in _NAMED:
        return _NAMED[text]
    return text.lower() if len(text) == 1 and text.isprintable() else ""


def _escape_sequence(descriptor: int) -> bytes:
    """Reads what follows an escape byte, to its end: nothing of it may be taken for a key that votes."""
    typed = b"\x1b"
    while not _ESCAPE.fullmatch(typed) and select.select([descriptor], [], [], _ESCAPE_SECONDS)[0]:
        byte = os.read(descriptor, 1)
        if not byte:
            break
        typed += byte
    return typed
