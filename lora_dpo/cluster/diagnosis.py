"""Which node and which process of a job failed first, and what it said last."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path

from lora_dpo.console import Failure
from lora_dpo.files import write_json

_LINES_SHOWN = 25
_STACK_LINES_SHOWN = 40
_VICTIM = re.compile(
    r"connection (reset|closed|refused)|broken pipe|closed by peer|peer closed|socket (timeout|closed)|timed out|"
    r"DistBackendError|NCCL|gloo|TCPStore|DistNetworkError|DistStoreError|RendezvousTimeout|"
    r"no micro-batch has ended|remote process has terminated",
    re.IGNORECASE,
)
"""What a process says that has only lost the others."""
_TORCHRUN = re.compile(
    r"time\s*: (?P<time>\S+)\s+host\s*: \S+\s+rank\s*: (?P<rank>\d+) .*?exitcode\s*: (?P<code>-?\d+)", re.DOTALL
)
_ENDED_BY_LAUNCHER = (0, -15)  # torchrun sends SIGTERM to the others when one has failed


@dataclass(frozen=True, slots=True)
class NodeReport:
    """How one node of a job ended, as it wrote it down itself.

    Attributes:
        node: Its name.
        exit_code: The training's own, or of what it died.
        told: What the training itself says that went wrong.
        failures: What the failing processes say of themselves.
        last_lines: What was printed last.
    """

    node: str
    exit_code: int
    told: str = ""
    failures: tuple[Failure, ...] = ()
    last_lines: tuple[str, ...] = ()

    def write(self, folder: Path) -> None:
        """Writes it down; a full disk is no reason to fail."""
        with suppress(OSError):
            write_json(folder / f"{self.node}.json", asdict(self))

    @classmethod
    def read_all(cls, folder: Path) -> list[NodeReport]:
        """Returns what the nodes of a job have written."""
        reports = []
        for file in sorted(folder.glob("*.json")):
            with suppress(OSError, ValueError, TypeError, KeyError):
                values = json.loads(file.read_text(encoding="utf-8"))
                failures = tuple(Failure(**each) for each in values["failures"])
                reports.append(cls(**{**values, "failures": failures, "last_lines": tuple(values["last_lines"])}))
        return reports


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """What went wrong first.

    Attributes:
        words: One sentence: which process on which node, and of what it died.
        details: Its stack, and what its node printed last.
    """

    words: str
    details: str = ""


def diagnose(reports: Sequence[NodeReport], nodes: Sequence[str], logs: str) -> Diagnosis:
    """Finds the process that failed first; those that have only lost it come after it, whatever their clocks say.

    Args:
        reports: What the nodes have written.
        nodes: Names of all nodes.
        logs: Where the logs are, for the details.
    """
    silent = [node for node in nodes if node not in {report.node for report in reports}]
    found = [
        (_is_victim(failure), failure.time, report, failure) for report in reports for failure in _failures(report)
    ]
    if found:
        victim, _, report, failure = min(found, key=lambda each: (each[0], each[1]))
        if not (victim and silent):
            of = f"Rank {failure.rank} on {report.node}"
            words = f"{of} failed first: {_first_line(failure.words)}"
            return Diagnosis(words, _details(report, failure, logs))
    if silent:
        were = f"{', '.join(silent)} {'was' if len(silent) == 1 else 'were'}"
        return Diagnosis(f"{were} killed, or went down: no word came from there.", f"The logs: {logs}")
    failed = [report for report in reports if report.exit_code not in (0, 85)]
    if not failed:
        return Diagnosis("No process says that it failed.", f"The logs: {logs}")
    words = f"A process on {failed[0].node} died without saying why (exit code {failed[0].exit_code})."
    return Diagnosis(words, _details(failed[0], None, logs))


def _failures(report: NodeReport) -> list[Failure]:
    """Returns what the processes say of themselves, and what the launcher says of those that could not."""
    failures = list(report.failures)
    said = {failure.rank for failure in failures}
    for match in _TORCHRUN.finditer("\n".join(report.last_lines)):
        rank, code = int(match["rank"]), int(match["code"])
        if rank not in said and code not in _ENDED_BY_LAUNCHER:
            words = f"it was killed by signal {-code}" if code < 0 else f"it ended with exit code {code}"
            words += ", as by a machine that ran out of memory" * (code == -9)
            failures.append(Failure(rank, _seconds(match["time"]), words))
            said.add(rank)
    return failures


def _is_victim(failure: Failure) -> bool:
    return _VICTIM.search(failure.words) is not None


def _seconds(text: str) -> float:
    try:
        return datetime.fromisoformat(text.replace("_", "T")).timestamp()
    except ValueError:
        return float("inf")


def _first_line(words: str) -> str:
    return next((line for line in words.splitlines() if line.strip()), "")


def _details(report: NodeReport, failure: Failure | None, logs: str) -> str:
    parts = []
    if failure is not None and failure.stack:
        parts += ["Its stack:", *failure.stack.rstrip().splitlines()[-_STACK_LINES_SHOWN:]]
    parts += [f"The last lines of {report.node}:", *report.last_lines[-_LINES_SHOWN:], f"The logs: {logs}"]
    return "\n".join(parts)
