"""One emulated Slurm cluster for all tests below, or the reason why there is none, said loudly."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.slurm.cluster import Cluster, started

ASKED = "LORA_DPO_TEST_SLURM"
_HERE = Path(__file__).parent
_skipped: list[str] = []


def why_not() -> str | None:
    """Returns why the tests on a real Slurm cannot run here; None if they can."""
    if os.environ.get(ASKED) != "1":
        return "they start a Slurm cluster on this machine: call `launch/test.sh --slurm`"
    if os.geteuid() != 0:
        return "emulated nodes need root"
    if shutil.which("slurmctld") is None and shutil.which("apt-get") is None:
        return "Slurm is not installed, and this is no Debian that it could be installed on"
    return None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    reason = why_not()
    for item in items:
        if "cluster" in getattr(item, "fixturenames", ()) and _HERE in item.path.parents:
            item.add_marker(pytest.mark.slow)
            if reason is not None:
                item.add_marker(pytest.mark.skip(reason=reason))
                _skipped.append(item.nodeid)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if _skipped:
        terminalreporter.section("Slurm was NOT tested", red=True, bold=True)
        terminalreporter.write_line(f"{len(_skipped)} tests of tests/slurm were skipped: {why_not()}.")


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Returns a cluster of four nodes, which share pytest's folders."""
    with started(tmp_path_factory.getbasetemp()) as running:
        yield running
