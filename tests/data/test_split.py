from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_dpo.data.manifest import split_manifest
from lora_dpo.data.pair import Pair, user
from lora_dpo.data.split import SPLITS, overlap, split_by_group
from lora_dpo.errors import UserError
from lora_dpo.recipe.schema import Source, Split

REPOSITORY = Path(__file__).parents[2]
ONE = [Source(path="a.csv")]


def made(group: str, answer: str = "yes") -> Pair:
    return Pair(user(f"prompt of {group}"), answer, "no", group)


def many(groups: int, each: int = 1, prefix: str = "g") -> list[Pair]:
    return [made(f"{prefix}{g}", f"answer {i}") for g in range(groups) for i in range(each)]


def sizes(splits) -> dict[str, int]:
    return {name: len(pairs) for name, pairs in splits.pairs.items()}


def groups_of(pairs) -> set[str]:
    return {pair.group for pair in pairs}


group_names = st.lists(st.text("abcdefgh", min_size=1, max_size=3), min_size=3, max_size=60).filter(
    lambda names: len(set(names)) >= 3
)
fractions = st.tuples(st.floats(0, 0.6), st.floats(0, 0.39)).filter(lambda pair: sum(pair) < 1)


@given(names=group_names, fraction=fractions, seed=st.integers(0, 100), rng=st.randoms(use_true_random=False))
def test_invariants(names, fraction, seed, rng):
    pairs = [made(name, str(i)) for i, name in enumerate(names)]
    split = Split(test=fraction[0], validation=fraction[1], seed=seed)
    splits = split_by_group([pairs], ONE, split)
    assert overlap(splits.pairs) == 0
    assert sum(sizes(splits).values()) == len(pairs)
    assert splits.dropped == {}
    gave_one = len(groups_of(splits.pairs["train"])) == 1  # of what rounding left to the others, so that it has any
    for name, wanted in (("test", fraction[0]), ("validation", fraction[1])):
        count, total = len(groups_of(splits.pairs[name])), len(set(names))
        assert count == 0 if wanted == 0 else count >= 1
        assert abs(count - wanted * total) <= (1.5 if gave_one else 1)
    shuffled = rng.sample(pairs, len(pairs))
    again = split_by_group([shuffled], ONE, split)
    assert split_manifest(again.pairs) == split_manifest(splits.pairs)


def test_fractions_are_of_groups_not_of_pairs():
    pairs = [made(f"g{g}", str(i)) for g in range(100) for i in range(1 + 50 * (g % 2))]
    splits = split_by_group([pairs], ONE, Split(test=0.2, validation=0.1))
    assert {name: len(groups_of(found)) for name, found in splits.pairs.items()} == {
        "train": 70, "validation": 10, "test": 20,
    }  # fmt: skip


def test_a_known_division():
    # printf '0:g%d' $i | sha256sum, sorted: g1, g0, g8, ... Another order would move questions of runs that exist.
    splits = split_by_group([many(10)], ONE, Split(test=0.2, validation=0.1, seed=0))
    assert groups_of(splits.pairs["test"]) == {"g0", "g1"}
    assert groups_of(splits.pairs["validation"]) == {"g8"}


def test_the_test_split_does_not_depend_on_the_validation_split():
    with_validation = split_by_group([many(50)], ONE, Split(test=0.2, validation=0.3))
    without = split_by_group([many(50)], ONE, Split(test=0.2, validation=0.0))
    assert groups_of(with_validation.pairs["test"]) == groups_of(without.pairs["test"])


def test_another_seed_is_another_division():
    tests = [groups_of(split_by_group([many(50)], ONE, Split(seed=seed)).pairs["test"]) for seed in (0, 1)]
    assert tests[0] != tests[1]


def test_another_process_divides_the_same_way():
    code = (
        "from lora_dpo.data.split import *; from lora_dpo.data.pair import *; from lora_dpo.data.manifest import *\n"
        "pairs = [Pair(user(f'prompt of g{i}'), 'answer 0', 'no', f'g{i}') for i in range(30)]\n"
        "print(split_manifest(split_by_group([pairs], [Source(path='a')], Split()).pairs)['test']['hash'])"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "123"}
    output = subprocess.run(
        [sys.executable, "-c", code], env=environment, cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    here = split_manifest(split_by_group([many(30)], ONE, Split()).pairs)
    assert output.stdout.strip() == here["test"]["hash"]


def test_small_fractions_get_a_group():
    assert sizes(split_by_group([many(3)], ONE, Split(test=0.01, validation=0.01))) == {
        "train": 1, "validation": 1, "test": 1,
    }  # fmt: skip


def test_rounding_leaves_something_to_train_on():
    assert sizes(split_by_group([many(3)], ONE, Split(test=0.5, validation=0.49)))["train"] == 1


def test_too_few_groups():
    with pytest.raises(UserError) as caught:
        split_by_group([many(2, each=10)], ONE, Split(test=0.2, validation=0.1), limit=15)
    message = str(caught.value)
    assert "data.split: the train split would be empty" in message
    assert "There are 2 questions" in message
    assert "raise data.limit (now 15)" in message
    assert "set data.split.test or data.split.validation to 0" in message


def test_no_pairs_at_all():
    with pytest.raises(UserError, match="the train and the validation and the test split would be empty"):
        split_by_group([[]], ONE, Split())


def test_sources_with_a_use_go_there_whole():
    sources = [Source(path="a", use="train"), Source(path="b", use="validation"), Source(path="c", use="test")]
    splits = split_by_group([many(5, prefix="a"), many(4, prefix="b"), many(3, prefix="c")], sources, Split())
    assert sizes(splits) == {"train": 5, "validation": 4, "test": 3}


def test_held_out_wins_over_training():
    sources = [Source(path="a", use="train"), Source(path="b", use="validation"), Source(path="c", use="test")]
    train = [made("x"), made("x", "other"), made("y"), made("z")]
    splits = split_by_group([train, [made("y", "v"), made("x", "v"), made("v")], [made("x", "t")]], sources, Split())
    assert {name: [(p.group, p.chosen) for p in found] for name, found in splits.pairs.items()} == {
        "train": [("z", "yes")],
        "validation": [("y", "v"), ("v", "yes")],
        "test": [("x", "t")],
    }
    assert splits.dropped == {"overlap": 4}
    assert overlap(splits.pairs) == 0


def test_a_divided_source_beside_a_test_source():
    sources = [Source(path="a"), Source(path="b", use="test")]
    splits = split_by_group([many(100), many(10)], sources, Split(test=0.0, validation=0.1))
    in_validation = groups_of(many(10)) & groups_of(
        split_by_group([many(100)], ONE, Split(test=0.0, validation=0.1)).pairs["validation"]
    )
    assert sizes(splits) == {"train": 80 + len(in_validation), "validation": 10 - len(in_validation), "test": 10}
    assert splits.dropped == {"overlap": 10}


def test_no_training_source():
    with pytest.raises(UserError, match="change the 'use' of a source"):
        split_by_group([many(5)], [Source(path="a", use="test")], Split())


def test_everything_held_out_by_another_source():
    sources = [Source(path="a", use="train"), Source(path="b", use="test")]
    with pytest.raises(UserError, match="the train split would be empty"):
        split_by_group([many(5), many(5)], sources, Split())


def test_limit_takes_whole_groups_and_keeps_fractions():
    splits = split_by_group([many(100, each=5)], ONE, Split(test=0.2, validation=0.1), limit=98)
    assert sizes(splits) == {"train": 70, "validation": 10, "test": 20}
    assert splits.dropped == {"limit": 400}


def test_limited_test_questions_are_test_questions_of_the_whole():
    whole = split_by_group([many(100)], ONE, Split())
    part = split_by_group([many(100)], ONE, Split(), limit=30)
    assert groups_of(part.pairs["test"]) <= groups_of(whole.pairs["test"])


def test_limit_above_the_number_of_pairs_changes_nothing():
    assert split_by_group([many(20)], ONE, Split(), limit=20) == split_by_group([many(20)], ONE, Split())


def test_limit_leaves_small_sources_a_share():
    sources = [Source(path="a", use="train"), Source(path="b", use="test")]
    splits = split_by_group([many(1000, prefix="a"), many(10, prefix="b")], sources, Split(), limit=101)
    assert sizes(splits) == {"train": 100, "validation": 0, "test": 1}


@pytest.mark.parametrize(("weight", "expected"), [(1.0, 70), (2.0, 140), (0.5, 35), (1.5, 105), (0.001, 1)])
def test_weight_repeats_training_pairs_only(weight, expected):
    splits = split_by_group([many(100)], [Source(path="a", weight=weight)], Split(test=0.2, validation=0.1))
    assert sizes(splits) == {"train": expected, "validation": 10, "test": 20}


def test_a_fractional_weight_takes_whole_groups_whatever_the_order():
    pairs = many(20, each=3)
    source = [Source(path="a", weight=0.5)]
    split = Split(test=0.0, validation=0.0)
    first = split_by_group([pairs], source, split).pairs
    again = split_by_group([random.Random(1).sample(pairs, len(pairs))], source, split).pairs
    assert len(first["train"]) == 30
    assert len(groups_of(first["train"])) == 10
    assert split_manifest(again) == split_manifest(first)


def folded(pairs, folds: int, limit=None, **split):
    """Returns the splits of each fold."""
    each = [Split(folds=folds, fold=fold, **split) for fold in range(1, folds + 1)]
    return [split_by_group([pairs], ONE, one, limit).pairs for one in each]


@given(
    names=st.lists(st.text("abcdefgh", min_size=1, max_size=3), min_size=4, max_size=60, unique=True),
    seed=st.integers(0, 100),
    validation=st.floats(0, 0.3),
    data=st.data(),
)
def test_invariants_of_folds(names, seed, validation, data):
    folds = data.draw(st.integers(2, len(names)))
    pairs = [made(name, str(i)) for name in names for i in range(2)]
    found = folded(pairs, folds, validation=validation, seed=seed)
    tests = [groups_of(splits["test"]) for splits in found]
    assert sorted(group for test in tests for group in test) == sorted(names)  # each question in exactly one test split
    assert max(map(len, tests)) - min(map(len, tests)) <= 1
    for splits in found:
        assert overlap(splits) == 0
        assert sum(map(len, splits.values())) == len(pairs)
        count = len(groups_of(splits["validation"]))
        assert count == 0 if validation == 0 else count >= 1
        assert count <= max(1, validation * len(names) + 0.5)
    shuffled = data.draw(st.permutations(pairs))
    again = folded(shuffled, folds, validation=validation, seed=seed)
    assert [split_manifest(splits) for splits in again] == [split_manifest(splits) for splits in found]


def test_known_folds():
    # The order of test_a_known_division goes on g6, g9, g4, g2, g7, g5, g3.
    first, second, third = folded(many(10), 3, validation=0.2)
    assert [groups_of(splits["test"]) for splits in (first, second, third)] == [
        {"g1", "g0", "g8"}, {"g6", "g9", "g4"}, {"g2", "g7", "g5", "g3"},
    ]  # fmt: skip
    assert [groups_of(splits["validation"]) for splits in (first, second, third)] == [
        {"g6", "g9"}, {"g1", "g0"}, {"g1", "g0"},
    ]  # fmt: skip


def test_the_first_of_five_folds_is_the_split_by_a_fifth():
    plain = split_by_group([many(100, each=2)], ONE, Split(test=0.2, validation=0.1)).pairs
    assert folded(many(100, each=2), 5, validation=0.1)[0] == plain


def test_with_folds_the_fraction_for_the_test_split_has_no_meaning():
    assert folded(many(20), 4, test=0.0) == folded(many(20), 4, test=0.9)


def test_folds_of_a_limited_set_share_its_questions():
    tests = [groups_of(splits["test"]) for splits in folded(many(100), 5, limit=30)]
    assert [len(test) for test in tests] == [6] * 5
    assert len(set().union(*tests)) == 30


def test_folds_divide_only_sources_without_a_use():
    sources = [Source(path="a"), Source(path="b", use="test")]
    apart = [made(f"b{i}") for i in range(3)]
    for fold in (1, 2):
        splits = split_by_group([many(10), apart], sources, Split(folds=2, fold=fold, validation=0.0))
        assert sizes(splits) == {"train": 5, "validation": 0, "test": 8}
        assert groups_of(apart) <= groups_of(splits.pairs["test"])


def test_more_folds_than_questions():
    with pytest.raises(UserError) as caught:
        split_by_group([many(4, each=9)], ONE, Split(folds=5, fold=1))
    assert str(caught.value) == (
        "data.split: data.split.folds is 5, but there are only 4 questions to divide\n"
        "Each fold needs one. Sources with a 'use' of their own are not divided.\n"
        "Take fewer folds, add questions, or raise data.limit."
    )
    with pytest.raises(UserError, match="folds is 2, but there are only 0 questions to divide"):
        split_by_group([many(4)], [Source(path="a", use="train")], Split(folds=2, fold=1))


def test_folds_that_leave_nothing_to_train_on():
    with pytest.raises(UserError) as caught:
        split_by_group([many(2)], ONE, Split(folds=2, fold=1, validation=0.1))
    message = str(caught.value)
    assert "the train split would be empty" in message
    assert "never divided; fold 1 of 2, data.split.validation 0.1. Pairs: train 0, validation 1, test 1" in message
    assert "Add questions, or set data.split.validation to 0." in message
    assert sizes(split_by_group([many(2)], ONE, Split(folds=2, fold=1, validation=0))) == {
        "train": 1, "validation": 0, "test": 1,
    }  # fmt: skip


def test_order_of_pairs_is_kept():
    pairs = many(30, each=2)
    for found in split_by_group([pairs], ONE, Split()).pairs.values():
        assert found == [pair for pair in pairs if pair in found]


def test_overlap_is_counted_honestly():
    assert overlap({"train": [made("a"), made("b"), made("b")], "validation": [], "test": [made("b"), made("c")]}) == 1
    assert SPLITS == ("train", "validation", "test")
