"""A Slurm that answers from files: what the real one said is in slurm_output/, what it was asked is kept."""

from __future__ import annotations

import json
import os
import shlex
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest

OUTPUT = Path(__file__).parent / "slurm_output"

_FAKES = {
    "sbatch": """
printf '%s\\n' "$(printf '%q ' "$@")" >>"$FAKE_SLURM/sbatch.calls"
env | sort >"$FAKE_SLURM/sbatch.env"
for word; do
    if [[ $word == --partition=nope ]]; then
        echo "sbatch: error: invalid partition specified: nope" >&2
        echo "allocation failure: Invalid partition name specified" >&2
        exit 1
    fi
done
if [[ $1 == --test-only ]]; then
    echo "sbatch: Job 7 to start at 2026-11-22T10:24:00 using 2 processors on nodes node[1-2] in partition batch" >&2
    exit 0
fi
number=$(($(cat "$FAKE_SLURM/number") + 1))
if [[ -e $FAKE_SLURM/hang && $number -ge $(cat "$FAKE_SLURM/hang") ]]; then
    echo "$number" >"$FAKE_SLURM/number"
    exec sleep 600
fi
if [[ -e $FAKE_SLURM/refuse && $number -ge $(cat "$FAKE_SLURM/refuse") ]]; then
    echo "sbatch: error: Batch job submission failed: Job violates accounting/QOS policy" >&2
    exit 1
fi
echo "$number" | tee "$FAKE_SLURM/number"
""",
    "scontrol": """
file="$FAKE_SLURM/jobs/$3.txt"
if [[ -e $FAKE_SLURM/down ]]; then
    echo "slurm_load_jobs error: Unable to contact slurm controller (connect failure)" >&2
    exit 1
fi
if [[ ! -e $file ]]; then echo "slurm_load_jobs error: Invalid job id specified" >&2; exit 1; fi
cat "$file"
""",
    "sacct": """
if [[ ! -e $FAKE_SLURM/sacct.txt ]]; then echo "Slurm accounting storage is disabled" >&2; exit 1; fi
for word; do [[ $last == -j ]] && job=$word; last=$word; done
grep "^$job|" "$FAKE_SLURM/sacct.txt" || true
""",
    "squeue": """
for word; do
    if [[ $word == --name=* ]]; then grep -l "JobName=${word#--name=}$" "$FAKE_SLURM"/jobs/*.txt; fi
done | sed 's|.*/||; s|[.]txt||'
""",
    "scancel": """
if [[ -e $FAKE_SLURM/down ]]; then echo "scancel: error: Unable to contact slurm controller" >&2; exit 1; fi
echo "$@" >>"$FAKE_SLURM/scancel.calls"
for job; do sed -i 's/JobState=[A-Z]*/JobState=CANCELLED/' "$FAKE_SLURM/jobs/$job.txt" 2>/dev/null || true; done
""",
}


@dataclass(frozen=True, slots=True)
class FakeSlurm:
    """What the commands answer, and what they were asked."""

    folder: Path

    def knows(self, job: str, output: str, **changes: str) -> None:
        """Lets the controller know a job by one of the texts in slurm_output/, with some of its fields changed."""
        text = (OUTPUT / f"{output}.txt").read_text()
        for field, value in changes.items():
            text = _changed(text, field, value)
        (self.folder / "jobs" / f"{job}.txt").write_text(text)

    def calls(self, command: str = "sbatch") -> list[list[str]]:
        """Returns the words of each call, oldest first."""
        file = self.folder / f"{command}.calls"
        return [shlex.split(line) for line in file.read_text().splitlines()] if file.exists() else []

    def submitted(self) -> list[list[str]]:
        """Returns the words of each call of sbatch that was no question."""
        return [words for words in self.calls() if words[0] != "--test-only"]

    def environment(self) -> dict[str, str]:
        """Returns the environment of the last call of sbatch."""
        lines = (self.folder / "sbatch.env").read_text().splitlines()
        return dict(line.split("=", 1) for line in lines if "=" in line)


def _changed(text: str, field: str, value: str) -> str:
    before, found, after = text.partition(f"{field}=")
    assert found, field
    end = min((place for place in (after.find(" "), after.find("\n")) if place >= 0), default=len(after))
    return f"{before}{found}{value}{after[end:]}"


@pytest.fixture
def fake_slurm(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> FakeSlurm:
    """Puts commands of Slurm first on PATH that answer from files."""
    folder = tmp_path_factory.mktemp("slurm")
    (folder / "bin").mkdir()
    (folder / "jobs").mkdir()
    (folder / "number").write_text("100\n")
    for name, body in _FAKES.items():
        script = folder / "bin" / name
        script.write_text(f"#!{shutil.which('bash')}\n{body}")
        script.chmod(0o755)
    monkeypatch.setenv("FAKE_SLURM", str(folder))
    monkeypatch.setenv("PATH", f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(folder / "config"))
    return FakeSlurm(folder)


@pytest.fixture
def no_slurm(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Takes Slurm's commands off PATH."""
    monkeypatch.setenv("PATH", str(tmp_path_factory.mktemp("bin")))


def record(run: Path, *events: dict) -> None:
    """Writes a run's record of its jobs."""
    (run / "slurm").mkdir(parents=True, exist_ok=True)
    with (run / "slurm" / "jobs.jsonl").open("a") as file:
        for event in events:
            values = {
                "time": "2026-11-22T10:00:00+00:00",
                "array_task": None,
                "restart": 0,
                "stage": "dpo",
                "nodes": [],
            }
            file.write(json.dumps({**values, **event}) + "\n")
