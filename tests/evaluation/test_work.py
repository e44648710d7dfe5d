from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from lora_dpo.errors import UserError
from lora_dpo.evaluation.work import Work
from tests.conftest import REPOSITORY
from tests.process import run_python

WORDS = ["one", "three", "fourteen", "two", "one"]


class Lengths:
    """Computes lengths, and remembers the batches."""

    def __init__(self, *, room: int = 100, fails_after: int = 100) -> None:
        self.batches: list[list[str]] = []
        self._room, self._fails_after = room, fails_after

    def __call__(self, batch: list[str]) -> list[int]:
        if len(batch) > self._room:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        if len(self.batches) == self._fails_after:
            raise KeyboardInterrupt
        self.batches.append(batch)
        return [len(word) for word in batch]


def lengths(work: Work, compute: Lengths, batch_size: int = 2) -> list[int]:
    return work.map("lengths, before", WORDS, WORDS, compute, batch_size=batch_size, size=len)


def test_larger_items_come_first_and_equal_ones_once() -> None:
    compute = Lengths()
    assert lengths(Work(), compute) == [3, 5, 8, 3, 3]
    assert compute.batches == [["fourteen", "three"], ["two", "one"]]


def test_what_was_interrupted_goes_on(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        lengths(Work(tmp_path), Lengths(fails_after=1))
    rest = Lengths()
    assert lengths(Work(tmp_path), rest) == [3, 5, 8, 3, 3]
    assert rest.batches == [["two", "one"]]
    again = Lengths()
    assert lengths(Work(tmp_path), again) == [3, 5, 8, 3, 3]
    assert again.batches == []
    assert lengths(Work(tmp_path / "of another model"), again) == [3, 5, 8, 3, 3]
    assert len(again.batches) == 2


def test_a_line_that_a_killed_process_left_unfinished_spoils_no_other(tmp_path: Path) -> None:
    lengths(Work(tmp_path), Lengths())
    (file,) = tmp_path.iterdir()
    file.write_text(file.read_text(encoding="utf-8")[:-2], encoding="utf-8")
    once, never = Lengths(), Lengths()
    assert lengths(Work(tmp_path), once) == [3, 5, 8, 3, 3]
    assert once.batches == [["one"]]
    assert lengths(Work(tmp_path), never) == [3, 5, 8, 3, 3]
    assert never.batches == []


def test_values_of_another_kind_are_kept_apart(tmp_path: Path) -> None:
    lengths(Work(tmp_path), Lengths())
    shout = Work(tmp_path).map(
        "loud", WORDS, WORDS, lambda batch: [word.upper() for word in batch], batch_size=9, size=len
    )
    assert shout == [word.upper() for word in WORDS]


def test_where_memory_ends_the_batch_is_halved(capfd) -> None:
    compute = Lengths(room=1)
    assert lengths(Work(), compute, batch_size=4) == [3, 5, 8, 3, 3]
    assert [len(batch) for batch in compute.batches] == [1, 1, 1, 1]
    said = " ".join(capfd.readouterr().err.split())
    assert "There was not enough memory: lengths, before, 4 at once. It goes on with 2." in said
    assert "lengths, before, 2 at once. It goes on with 1." in said


@pytest.mark.parametrize("work", [Work(), Work(together=True)])
def test_memory_that_ends_for_one_item_or_for_processes_in_step_is_an_error(work: Work) -> None:
    with pytest.raises(UserError, match="There is not enough memory: lengths, before"):
        lengths(work, Lengths(room=0 if not work.together else 1))


def test_other_errors_are_not_taken_for_it() -> None:
    with pytest.raises(ZeroDivisionError):
        Work().map("x", WORDS, WORDS, lambda batch: [1 / 0], batch_size=2, size=len)


SHARED = """
import json, sys
from pathlib import Path
from accelerate import PartialState
from lora_dpo.evaluation.work import Work
from lora_dpo.training.agreement import leave_together
state = PartialState(cpu=True)
asked = []
def compute(batch):
    asked.extend(batch)
    return [len(word) for word in batch]
work = Work(Path(sys.argv[1]), together=json.loads(sys.argv[2]))
words = ["x" * n for n in range(1, 8)]
found = work.map("lengths", words, words, compute, batch_size=2, size=len)
Path(f"{state.process_index}.json").write_text(json.dumps({"found": found, "asked": asked}))
leave_together()
"""


@pytest.mark.slow
@pytest.mark.parametrize("together", [False, True])
def test_two_processes_share_the_items_or_go_in_step(together: bool, tmp_path: Path) -> None:
    (tmp_path / "shared.py").write_text(SHARED, encoding="utf-8")
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    for start in range(2):
        done = run_python(*launcher, "shared.py", "kept", json.dumps(together), cwd=tmp_path, ACCELERATE_USE_CPU="true")
        assert done.returncode == 0, done.stderr
        results = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)]
        assert [result["found"] for result in results] == [[1, 2, 3, 4, 5, 6, 7]] * 2
        asked = [sorted(map(len, result["asked"])) for result in results]
        if start == 1:
            assert asked == [[], []]
        elif together:
            assert asked == [[1, 2, 3, 4, 5, 6, 7]] * 2
        else:
            assert sorted(asked[0] + asked[1]) == [1, 2, 3, 4, 5, 6, 7]
            assert len(asked[0]) == 4


def test_the_harness_s_prompt_ends_where_an_answer_begins() -> None:
    text = (REPOSITORY / "lora_dpo" / "evaluation" / "qa_prompt.txt").read_text(encoding="utf-8")
    assert text.count("Q: ") == text.count("\nA: ") == 6
    assert text.endswith(".\n\n")
