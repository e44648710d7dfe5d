from __future__ import annotations

import numpy as np

from lora_dpo.tree.ragged import Ragged


def ragged(*vectors: list[float]) -> Ragged:
    lengths = np.array([len(vector) for vector in vectors], np.int64)
    return Ragged(np.array([value for vector in vectors for value in vector], np.float32), lengths)


def as_lists(vectors: Ragged) -> list[list[float]]:
    return [vector.tolist() for vector in vectors.split()]


def test_vectors_can_be_written_to() -> None:
    zeros = Ragged.zeros([2, 0, 1])
    vectors = zeros.split()
    vectors[0][:] = [1, 2]
    vectors[2][:] = [3]
    assert as_lists(zeros) == [[1, 2], [], [3]]
    assert Ragged.zeros([]).split() == []


def test_taken_and_joined() -> None:
    given = ragged([1, 2], [], [3], [4, 5, 6])
    assert as_lists(given.take(np.array([3, 0, 1, 3]))) == [[4, 5, 6], [1, 2], [], [4, 5, 6]]
    assert as_lists(given.take(np.array([], np.int64))) == []
    assert as_lists(Ragged.joined([given.take(np.array([2])), given])) == [[3], [1, 2], [], [3], [4, 5, 6]]
    assert len(Ragged.joined([])) == 0


def test_finite() -> None:
    nan, infinite = float("nan"), float("-inf")
    assert ragged([1, nan], [], [3], [4, infinite, 6], [nan]).finite().tolist() == [1, 2]
