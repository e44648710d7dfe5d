from __future__ import annotations

from hypothesis import given

from lora_dpo.tree.pairs import PairTokens, pair_tokens
from tests.tree.preferences import data_sets, distinct_tokens, entangled


@given(pairs=data_sets() | entangled())
def test_distinct_tokens_are_those_of_the_forest(pairs: list[PairTokens]) -> None:
    assert [pair.distinct_tokens for pair in pairs] == [distinct_tokens([pair]) for pair in pairs]


def test_distinct_tokens_by_hand() -> None:
    assert PairTokens([1, 2], [3, 4], [3, 5, 6], "a").distinct_tokens == 2 + 1 + 1 + 2
    assert PairTokens([1, 2], [3], [3, 5, 6], "a").distinct_tokens == 2 + 3
    assert PairTokens([], [], [], "a").distinct_tokens == 0


def test_pairs_of_one_prompt_are_a_group() -> None:
    columns = {"prompt_ids": [[1, 2], [1, 2], [3]], "chosen_ids": [[4], [5], [6]], "rejected_ids": [[7], [8], [9, 9]]}
    found = pair_tokens(columns)
    assert found[0] == PairTokens([1, 2], [4], [7], found[0].group)
    assert found[0].group == found[1].group != found[2].group
    assert found[2].sequences == [[3, 6], [3, 9, 9]]
