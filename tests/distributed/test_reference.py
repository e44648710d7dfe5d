"""Real processes fill one reference cache: two of one run, two runs at once, one that is killed."""

from __future__ import annotations

import json
import signal
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import REPOSITORY
from tests.distributed.test_trees import needs_deepspeed
from tests.process import run_python
from tests.reference import only_store

pytestmark = pytest.mark.slow

SECTIONS = {"train": {"tokens_per_micro_batch": 60}}


def fill(
    model: Path, folder: Path, cache: Path, *, world: int = 1, sections: dict = SECTIONS, killed_after: int = 0
) -> list[dict[str, Any]]:
    """Returns what each process found; nothing where they were killed."""
    folder.mkdir()
    start = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(world)] if world > 1 else []
    script = REPOSITORY / "tests" / "distributed" / "fill_small.py"
    given = [script, model, folder, json.dumps(sections), str(killed_after)]
    done = run_python(*start, *given, cwd=folder, LORA_DPO_CACHE=str(cache))
    assert done.returncode == (-signal.SIGKILL if killed_after else 0), done.stderr[-3000:]
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(0 if killed_after else world)]


def check_columns(found: Sequence[Sequence[float]], expected: Sequence[Sequence[float]]) -> None:
    for column, values in zip(found, expected, strict=True):
        assert column == pytest.approx(values, abs=1e-4)


def check_entries(cache: Path, expected_cache: Path) -> None:
    """Checks that two caches hold the same sequences of the same policy, in sound files."""
    found, expected = (only_store(each).read() for each in (cache, expected_cache))
    assert found.keys.tolist() == expected.keys.tolist()
    assert found.values.values == pytest.approx(expected.values.values, abs=1e-4)
    assert not list(cache.rglob("*.damaged"))
    assert not list(cache.rglob("*.partial"))


@pytest.fixture(scope="module")
def alone(tiny_models, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    """Returns what one process found, and the cache that it left."""
    folder = tmp_path_factory.mktemp("alone")
    (found,) = fill(tiny_models("llama"), folder / "run", folder / "cache")
    assert (found["found"], found["computed"] > 20, found["batches"] > 8) == (0, True, True)
    return found, folder / "cache"


STRATEGIES = {
    "ddp": "DistributedType.MULTI_CPU",
    "zero2": "DistributedType.DEEPSPEED",
    "zero3": "DistributedType.DEEPSPEED",
}


def under(strategy: str) -> dict[str, Any]:
    if strategy == "ddp":
        return SECTIONS
    return {"train": {**SECTIONS["train"], "trl": {"deepspeed": str(REPOSITORY / "ds_configs" / f"{strategy}.json")}}}


@pytest.mark.parametrize(
    "strategy", ["ddp", *(pytest.param(name, marks=needs_deepspeed) for name in ("zero2", "zero3"))]
)
def test_two_processes_make_the_entries_of_one(strategy: str, tiny_models, tmp_path: Path, alone) -> None:
    expected, cache = alone
    one, other = fill(tiny_models("llama"), tmp_path / "run", tmp_path / "cache", world=2, sections=under(strategy))
    assert (one["world"], one["strategy"]) == (2, STRATEGIES[strategy])
    assert one["folder"] == expected["folder"], "another key"
    assert (one["found"], one["computed"]) == (0, expected["computed"])
    assert one["batches"] == other["batches"] == -(-expected["batches"] // 2)
    assert one["columns"] == other["columns"]
    check_columns(one["columns"], expected["columns"])
    check_entries(tmp_path / "cache", cache)


@needs_deepspeed
def test_divided_weights_find_what_whole_ones_computed(tiny_models, tmp_path: Path, alone) -> None:
    expected, cache = alone
    found = fill(tiny_models("llama"), tmp_path / "run", cache, world=2, sections=under("zero3"))
    for each in found:
        assert (each["found"], each["computed"], each["batches"]) == (expected["computed"], 0, 0)
        assert each["columns"] == expected["columns"]


def test_two_runs_at_once(tiny_models, tmp_path: Path, alone) -> None:
    expected, cache = alone
    with ThreadPoolExecutor(2) as both:
        names = ("one", "other")
        runs = [both.submit(fill, tiny_models("llama"), tmp_path / name, tmp_path / "cache") for name in names]
        for run in runs:
            check_columns(run.result()[0]["columns"], expected["columns"])
    check_entries(tmp_path / "cache", cache)


def test_a_run_that_is_killed_keeps_what_it_has_computed(tiny_models, tmp_path: Path, alone) -> None:
    expected, _ = alone
    model, cache = tiny_models("llama"), tmp_path / "cache"
    fill(model, tmp_path / "killed", cache, killed_after=5)
    (rest,) = fill(model, tmp_path / "rest", cache)
    assert rest["found"] >= 5, "a batch has a sequence at least"
    assert rest["computed"] == expected["computed"] - rest["found"]
    assert 0 < rest["batches"] <= expected["batches"] - 4  # what is left may be cut once more often
    check_columns(rest["columns"], expected["columns"])


WRITER = """
import sys
import numpy as np
from pathlib import Path
from lora_dpo.training import reference_store
from lora_dpo.training.reference_policy import ReferencePolicy
from lora_dpo.training.reference_store import Entries, ReferenceStore
from lora_dpo.tree.ragged import Ragged

reference_store._MANY_FILES = 4
store = ReferenceStore(Path(sys.argv[1]), ReferencePolicy({}), per_token=False)
first, seen = int(sys.argv[2]), 0
for number in range(first, first + 200):
    key = np.array([b"%032d" % number], "S32")
    store.write(Entries(key, Ragged(np.array([number], np.float32), np.array([1]))))
    found = store.read()
    numbers = [int(key) for key in found.keys]
    assert set(range(first, number + 1)) <= set(numbers)
    assert len(numbers) >= seen
    seen = len(numbers)
    assert numbers == found.values.values.tolist()
print(len(store.read()))
"""


def test_two_processes_write_read_and_tidy_at_once(tmp_path: Path) -> None:
    (tmp_path / "writer.py").write_text(WRITER)
    with ThreadPoolExecutor(2) as both:
        runs = [
            both.submit(run_python, tmp_path / "writer.py", tmp_path / "cache", first, cwd=tmp_path)
            for first in ("0", "100")  # half of the keys are in both
        ]
        for run in runs:
            assert run.result().returncode == 0, run.result().stderr[-3000:]
    done = run_python(tmp_path / "writer.py", tmp_path / "cache", "300", cwd=tmp_path)
    assert done.stdout.split() == ["500"], done.stderr[-3000:]
    assert not list((tmp_path / "cache").rglob("*.partial"))
