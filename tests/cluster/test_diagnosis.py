from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from lora_dpo.cluster.diagnosis import NodeReport, diagnose
from lora_dpo.console import Failure

TORCHRUN = """
Traceback (most recent call last):
torch.distributed.elastic.multiprocessing.errors.ChildFailedError:
============================================================
lora_dpo.dpo FAILED
------------------------------------------------------------
Failures:
  <NO_OTHER_FAILURES>
------------------------------------------------------------
Root Cause (first observed failure):
[0]:
  time      : 2026-11-22_10:00:01
  host      : node2
  rank      : 3 (local_rank: 1)
  exitcode  : -9 (pid: 241)
  error_file: <N/A>
  traceback : Signal 9 (SIGKILL) received by PID 241
============================================================
"""
LOST = Failure(0, 50.0, "RuntimeError: [gloo] Connection closed by peer [10.203.7.12]:1", "Traceback of the victim")
BUG = Failure(2, 60.0, "ValueError: the data\nis wrong", "Traceback of the bug\n  line 7")
NODES = ("node1", "node2")
LOGS = "runs/x/slurm/logs/dpo-7.0.*.out"


def test_a_process_that_lost_the_others_is_not_the_first_whatever_the_clocks_say():
    reports = [NodeReport("node1", 1, failures=(LOST,)), NodeReport("node2", 1, failures=(BUG,), last_lines=("x", "y"))]
    found = diagnose(reports, NODES, LOGS)
    assert found.words == "Rank 2 on node2 failed first: ValueError: the data"
    assert found.details == (
        f"Its stack:\nTraceback of the bug\n  line 7\nThe last lines of node2:\nx\ny\nThe logs: {LOGS}"
    )


def test_of_two_real_failures_the_earlier_is_told():
    early = replace(BUG, rank=1, time=10.0)
    reports = [NodeReport("node1", 1, failures=(early,)), NodeReport("node2", 1, failures=(BUG,))]
    assert diagnose(reports, NODES, LOGS).words.startswith("Rank 1 on node1 failed first")


def test_a_kill_is_known_by_what_the_launcher_says():
    reports = [
        NodeReport("node1", 1, failures=(LOST,)),
        NodeReport("node2", 1, last_lines=tuple(TORCHRUN.splitlines())),
    ]
    words = diagnose(reports, NODES, LOGS).words
    assert words == "Rank 3 on node2 failed first: it was killed by signal 9, as by a machine that ran out of memory"


def test_what_the_launcher_ended_itself_is_no_failure():
    lines = tuple(TORCHRUN.replace("-9", "-15").splitlines())
    found = diagnose([NodeReport("node1", 1, last_lines=lines)], ("node1",), LOGS)
    assert found.words == "A process on node1 died without saying why (exit code 1)."


def test_a_node_that_says_nothing_is_the_one_where_the_others_have_only_lost_it():
    found = diagnose([NodeReport("node1", 1, failures=(LOST,))], NODES, LOGS)
    assert found.words == "node2 was killed, or went down: no word came from there."
    assert diagnose([], NODES, LOGS).words.startswith("node1, node2 were killed, or went down")


def test_a_report_is_read_back(tmp_path: Path):
    report = NodeReport("node1", 1, "told", (LOST, BUG), ("last", "lines"))
    report.write(tmp_path)
    (tmp_path / "node2.json").write_text("{torn")
    assert NodeReport.read_all(tmp_path) == [report]
    assert NodeReport.read_all(tmp_path / "none") == []
