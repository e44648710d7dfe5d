from __future__ import annotations

import hashlib

import numpy as np
import pytest
import torch
from trl.trainer.dpo_trainer import DataCollatorForPreference

from lora_dpo.tree.forest import build_forest
from lora_dpo.tree.sequences import (
    Completion,
    Distinct,
    padded,
    padded_batches,
    pair_log_probs,
    scored_values,
    tree_batches,
    unpadded,
)

ROWS = [
    {"prompt_ids": [1, 2, 3], "chosen_ids": [4, 5], "rejected_ids": [6]},
    {"prompt_ids": [7], "chosen_ids": [8], "rejected_ids": [9, 10, 11]},
]


def as_lists(sequences: list[Completion]) -> list[tuple[list[int], int]]:
    return [(ids.tolist(), start) for ids, start in sequences]


def test_sequences_of_trl_s_batch_chosen_first() -> None:
    found = unpadded(DataCollatorForPreference(pad_token_id=0)(ROWS))
    assert as_lists(found) == [([1, 2, 3, 4, 5], 3), ([7, 8], 1), ([1, 2, 3, 6], 3), ([7, 9, 10, 11], 1)]


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        ("keep_start", [([1, 2], 2), ([7, 8], 1), ([1, 2], 2), ([7, 9], 1)]),
        ("keep_end", [([4, 5], 1), ([7, 8], 1), ([3, 6], 1), ([10, 11], 1)]),  # nothing predicts a first token
    ],
)
def test_sequences_are_what_truncation_leaves(mode: str, expected: list) -> None:
    collator = DataCollatorForPreference(pad_token_id=0, max_length=2, truncation_mode=mode)
    assert as_lists(unpadded(collator(ROWS))) == expected


def test_padding_and_back() -> None:
    given = [Completion.of([1, 2, 3], [4, 5]), Completion.of([7], [8])]
    batch = padded(given)
    assert batch["input_ids"].tolist() == [[1, 2, 3, 4, 5], [7, 8, 0, 0, 0]]
    assert batch["attention_mask"].tolist() == [[1] * 5, [1, 1, 0, 0, 0]]
    assert batch["completion_mask"].tolist() == [[0, 0, 0, 1, 1], [0, 1, 0, 0, 0]]
    assert as_lists(unpadded(batch)) == as_lists(given)
    values = torch.arange(8).view(2, 4)  # of tokens 1 to 4
    assert [part.tolist() for part in scored_values(values, given)] == [[2, 3], [4]]


def test_key_by_hand() -> None:
    by_hand = b"\x02" + 7 * b"\0" + b"\x01\0\0\0" + b"\x02\0\0\0" + b"\x03\x01\0\0"
    assert Completion.of([1, 2], [259]).key == hashlib.sha256(by_hand).digest()
    assert Completion.of([1], [2, 259]).key != Completion.of([1, 2], [259]).key, "the same tokens, another answer"


def test_distinct_sequences() -> None:
    one, other, another = Completion.of([1], [2]), Completion.of([1], [3]), Completion.of([1, 3], [])
    found = Distinct.of([one, other, one, another, other])
    assert len(found.keys) == len(found.sequences) == 3
    assert as_lists([found.sequences[place] for place in found.places]) == as_lists([one, other, one, another, other])
    assert sorted(found.keys) == list(found.keys)


def test_trees_are_cut_by_the_tokens_that_they_have() -> None:
    draw = np.random.default_rng(0)
    prompts = draw.integers(0, 9, (6, 5)).tolist()
    given = [Completion.of(prompts[draw.integers(6)], draw.integers(0, 3, draw.integers(1, 9))) for _ in range(60)]
    batches = tree_batches(given, 25)
    assert sorted(index for batch in batches for index in batch) == list(range(60))
    sizes = [len(build_forest([given[index].ids for index in batch])) for batch in batches]
    assert max(sizes) <= 25
    for batch, after in zip(batches, batches[1:], strict=False):  # not one more would fit
        assert len(build_forest([given[index].ids for index in [*batch, after[0]]])) > 25


def test_a_sequence_that_is_larger_than_a_tree_may_be() -> None:
    given = [Completion.of([1], [2] * 9), Completion.of([3], [4]), Completion.of([3], [5])]
    assert tree_batches(given, 5) == [[0], [1, 2]]
    assert tree_batches([], 5) == []


def test_padded_batches() -> None:
    given = [Completion.of([1], [2] * n) for n in (1, 9, 4, 4, 3)]
    assert padded_batches(given, 2) == [[1, 2], [3, 4], [0]]
    assert padded_batches(given, 5, positions=10) == [[1], [2, 3], [4, 0]]
    assert padded_batches(given, 5, positions=1) == [[1], [2], [3], [4], [0]]


def test_pair_log_probs_by_hand() -> None:
    chosen, rejected = np.array([-1, -2, -4, -8], np.float32), np.array([-3, -5], np.float32)
    assert pair_log_probs(chosen, rejected, 0.25) == (-1 - 2 - 0.25 * 12, -8)
    assert pair_log_probs(rejected, chosen, 0.0) == (-8, -3)
    assert pair_log_probs(chosen, rejected, 1.0) == (-15, -8)
    assert pair_log_probs(chosen[:1], rejected[:1], None) == (-1, -3)
