"""Reads what pip reports and prints: which torch it takes, how many bytes, how far it is, why it failed."""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO
from urllib.parse import unquote, urlsplit

# What pip says when the cause lies outside of it, the most telling first, and what to tell the user.
FAILURES = {
    r"No space left|Errno 28\b|Disk quota exceeded": "The disk is full. Free some space, or name another disk for "
    "temporary files in TMPDIR and for pip's cache in PIP_CACHE_DIR.",
    r"CERTIFICATE_VERIFY_FAILED|SSLError|SSLCertVerif": "The certificate of the package index is not trusted. "
    "Name your network's certificate file in PIP_CERT.",
    r"resol\w+ (?:host|.*name)|name resolution|NewConnection|Max retries|Connect(?:ion)?.?(?:Error|Timeout)|ReadTimeout"
    r"|timed out|Network is unreachable|Connection (?:refused|reset|broken|aborted)|ProxyError": "There is no network "
    "connection to the package index. Name a proxy in HTTPS_PROXY or a mirror in PIP_INDEX_URL if you need one.",
    r"Permission denied|Errno 13\b": "A file or folder cannot be written.",
    r"No matching distribution|from versions:": "The package index has no build of a pinned version for this Python. "
    "Python 3.11 to 3.14 on Linux will do; PYTHON=/path/to/python3.12 names one.",
}


def human(size_bytes: float) -> str:
    """Returns `12 MB` or `3.4 GB`."""
    return f"{size_bytes / 1e9:.1f} GB" if size_bytes >= 1e9 else f"{size_bytes / 1e6:.0f} MB"


def find_torch(report: Mapping[str, Any]) -> tuple[str, str] | None:
    """Returns version and build (`CPU` or `CUDA`) of the torch that pip would install, None where it would not."""
    versions = {item["metadata"]["name"].lower(): item["metadata"]["version"] for item in report["install"]}
    if "torch" not in versions:
        return None
    _, _, local = versions["torch"].partition("+")
    is_cuda = local.startswith("cu") or (not local and any(name.startswith("nvidia-") for name in versions))
    return versions["torch"], "CUDA" if is_cuda else "CPU"


def torch_message(version: str, build: str, *, want_cuda: bool, because: str) -> str:
    """Returns one line: which torch is taken, and why.

    Args:
        version: As pip names it, such as `2.13.0+cpu`.
        build: `CPU` or `CUDA`.
        want_cuda: Whether a CUDA build was looked for.
        because: Why it was, or was not.
    """
    head = f"torch {version}, {build} build"
    if build == "CUDA" and not want_cuda:
        return (
            f"{head}, although {because}: pip's indexes offer no CPU build. For a download that is gigabytes smaller "
            "press Ctrl-C, name an index with CPU builds in PIP_EXTRA_INDEX_URL and call again."
        )
    if build == "CPU" and want_cuda:
        return f"{head}, although {because}: pip's indexes offer no CUDA build. This torch will not use a GPU."
    return f"{head} ({because})."


def file_name(url: str) -> str:
    """Returns the last part of an address, as pip prints it."""
    return unquote(urlsplit(url).path).rsplit("/", 1)[-1]


def file_size(url: str, timeout_seconds: float = 4.0) -> int | None:
    """Returns the bytes of one file by a HEAD request or, for file://, from the file system; None if that fails."""
    from urllib.request import Request, url2pathname, urlopen  # not needed where all is set up

    try:
        if url.startswith("file:"):
            return Path(url2pathname(url.removeprefix("file://"))).stat().st_size
        with urlopen(Request(url, method="HEAD"), timeout=timeout_seconds) as response:
            return int(response.headers["Content-Length"])
    except (OSError, TypeError, ValueError):
        return None


def file_sizes(*reports: Mapping[str, Any]) -> dict[str, int | None]:
    """Returns name and bytes of every file that pip would fetch, None where the size is not known."""
    from concurrent.futures import ThreadPoolExecutor

    sources = [item["download_info"] for report in reports for item in report["install"]]
    urls = [source["url"] for source in sources if "dir_info" not in source]
    with ThreadPoolExecutor(16) as threads:
        return dict(zip(map(file_name, urls), threads.map(file_size, urls), strict=True))


def size_message(sizes: Mapping[str, int | None]) -> str:
    """Returns one line: how much is downloaded."""
    known = [size for size in sizes.values() if size is not None]
    if not known:
        return f"Download: {len(sizes)} files of unknown size."
    unknown = f" and {len(sizes) - len(known)} of unknown size" if len(known) < len(sizes) else ""
    return f"Download: {human(sum(known))} in {len(known)} files{unknown} (less where pip has a cached or local copy)."


def explain(lines: Sequence[str], code: int | None) -> str:
    """Returns a failure in words, the line that tells the cause, and the last lines.

    Args:
        lines: What pip printed, or an error of the file system.
        code: pip's exit code; None where it was not pip that failed.
    """
    last = list(lines[-8:])
    for pattern, words in FAILURES.items():
        telling = [line for line in lines if re.search(pattern, line, re.IGNORECASE)]
        if telling:
            # The cause is often far above the error that ends pip.
            first = [] if telling[-1] in last else [telling[-1], "..."]
            return "\n    ".join([words, *first, *last])
    if code is None:
        return "\n    ".join(last)
    killed = "pip was killed, probably for want of memory." if code == -9 else f"pip ended with exit code {code}."
    return "\n    ".join([killed, *last])


class Progress:
    """Turns pip's machine-readable output into one changing line or, in a log, one for every tenth."""

    def __init__(self, sizes: Mapping[str, int | None], stream: TextIO) -> None:
        self._left = {name: size for name, size in sizes.items() if size}
        self._total_bytes, self._stream, self._tenth = sum(self._left.values()), stream, 0
        self._current = ""

    def feed(self, line: str) -> None:
        """Takes one line of pip's output."""
        if match := re.match(r"Progress (\d+) of ", line):
            self._show(int(match[1]))
        elif match := re.match(r"\s*(?:Downloading|Using cached|Processing) (\S+)", line):
            self._left.pop(self._current, None)
            self._current = match[1].rsplit("/", 1)[-1]
        elif line.startswith("Installing collected packages:"):
            count = line.count(",") + 1
            self._print(f"  installing {count} package{'s' if count > 1 else ''}", end="\n")

    def _show(self, current_bytes: int) -> None:
        done_bytes = self._total_bytes - sum(self._left.values()) + current_bytes
        if self._current in self._left and (self._stream.isatty() or 10 * done_bytes > self._tenth * self._total_bytes):
            self._tenth = 10 * done_bytes // self._total_bytes + 1
            self._print(f"  fetched {human(done_bytes)} of {human(self._total_bytes)}: {self._current}", end="")

    def _print(self, text: str, end: str) -> None:
        width = shutil.get_terminal_size().columns - 1
        self._stream.write(f"\r\033[K{text[:width]}{end}" if self._stream.isatty() else f"{text}\n")
        self._stream.flush()
