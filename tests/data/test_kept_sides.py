from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lora_dpo.data.kept_sides import kept_sides
from lora_dpo.data.manifest import write_pairs
from lora_dpo.data.pair import Pair, group_of, user
from lora_dpo.data.split import split_by_group
from lora_dpo.errors import UserError
from lora_dpo.recipe.run_folder import RunFolder
from lora_dpo.recipe.schema import Source, Split
from tests.small import small_recipe

SOURCES = [Source(path="prefs.jsonl")]


def pairs(count: int) -> list[Pair]:
    return [Pair(turns := user(f"Question {n}?"), "a", "b", group_of(turns)) for n in range(count)]


def divided(count: int, split: Split, kept=None) -> dict[str, set[str]]:
    splits = split_by_group([pairs(count)], SOURCES, split, kept=kept)
    return {side: {pair.group for pair in found} for side, found in splits.pairs.items()}


def run_with(folder: Path, name: str, count: int, split: Split) -> str:
    recipe = small_recipe("tiny", folder, run={"name": name}, data={"split": split.model_dump()})
    run = RunFolder.of(recipe)
    run.create(recipe, overwrite=False).release()
    kept = kept_sides(split.like, pairs(count))
    write_pairs(run.data / "pairs.jsonl", split_by_group([pairs(count)], SOURCES, split, kept=kept).pairs)
    return str(run.path)


@given(before=st.integers(5, 60), more=st.integers(0, 60), seed=st.integers(0, 5))
@settings(max_examples=50)
def test_a_question_never_changes_its_side(before: int, more: int, seed: int) -> None:
    split = Split(test=0.2, validation=0.1, seed=seed)
    first = divided(before, split)
    kept = {group: side for side, groups in first.items() for group in groups}
    second = divided(before + more, split, kept)
    assert all(first[side] <= second[side] for side in first)
    assert sum(map(len, second.values())) == before + more
    plain = divided(before + more, split)
    for side in ("test", "validation"):
        assert len(second[side]) == max(len(first[side]), len(plain[side]))


def test_runs_before_the_last_one_count_as_well(tmp_path: Path) -> None:
    split = Split(test=0.25, validation=0.0)
    one = run_with(tmp_path, "one", 12, split)
    two = run_with(tmp_path, "two", 10, split.model_copy(update={"like": one}))
    sides = kept_sides(two, pairs(20))
    assert sides == kept_sides(one, pairs(20))
    assert len(sides) == 12


def test_a_group_that_was_on_two_sides_is_held_out(tmp_path: Path) -> None:
    one = run_with(tmp_path, "one", 12, Split(test=0.25, validation=0.0))
    sides = kept_sides(one, pairs(12))
    merged = [Pair(pair.prompt, "a", "b", "all") for pair in pairs(12)]
    assert set(sides.values()) == {"train", "test"}
    assert kept_sides(one, merged) == {"all": "test"}


def test_a_run_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"data.split.like is .*gone\. There is no run at"):
        kept_sides(str(tmp_path / "gone"), pairs(2))
