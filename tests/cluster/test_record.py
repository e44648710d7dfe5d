from __future__ import annotations

from pathlib import Path

from lora_dpo.cluster.record import Record
from lora_dpo.recipe.run_folder import RunFolder


def test_events_come_back_in_order_and_with_a_time(tmp_path: Path):
    record = Record(RunFolder(tmp_path / "run"))
    assert record.events() == []
    assert record.append("submitted", job="7", stage="dpo")
    assert record.append("started", job="7", nodes=["é1"])
    events = record.events()
    assert [event["event"] for event in events] == ["submitted", "started"]
    assert events[1]["nodes"] == ["é1"]
    assert all(event["time"].endswith("+00:00") for event in events)


def test_a_line_that_a_full_disk_has_cut_off_costs_no_other(tmp_path: Path):
    record = Record(RunFolder(tmp_path))
    record.append("started", job="1")
    with open(record.path, "a") as file:
        file.write('{"event": "end')
    record.append("started", job="2")
    assert [event["job"] for event in record.events()] == ["1", "2"]


def test_a_disk_that_takes_nothing_is_no_reason_to_fail(tmp_path: Path):
    record = Record(RunFolder(tmp_path))
    (tmp_path / "slurm").mkdir()
    (tmp_path / "slurm" / "jobs.jsonl").symlink_to("/dev/full")
    assert not record.append("started", job="1")
