"""Where an arm's process begins; nothing heavy is imported before its output goes to a file."""

from __future__ import annotations

import os
import pickle
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path


def serve_remotely(channel: Connection, job: bytes, log: Path) -> None:
    """Serves an arm in this process.

    Args:
        channel: To the parent.
        job: A pickled `Job`; unpickling it imports torch and TRL, which have things to say.
        log: File for all output.
    """
    file = os.open(log, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(file, stream)
    with suppress(OSError):  # if Linux must kill somebody for lack of memory
        Path("/proc/self/oom_score_adj").write_text("1000")
    from benchmarks.worker import serve

    serve(channel, pickle.loads(job))
