from __future__ import annotations

from lora_dpo.data.groups import merge_groups
from lora_dpo.data.pair import Pair, group_of, user


def _pair(question: str, group: str) -> Pair:
    return Pair(user(question), "yes", "no", group)


def test_groups_that_share_a_prompt_become_one_transitively():
    pairs = [_pair("A?", "g1"), _pair("B?", "g1"), _pair("b", "g2"), _pair("C?", "g2"), _pair("D?", "g3")]
    first, second, third, fourth, other = [pair.group for pair in merge_groups(pairs)]
    assert first == second == third == fourth == "g1"
    assert other == "g3"


def test_groups_by_prompt_stay_as_they_are():
    pairs = [Pair(user(text), "yes", "no", group_of(user(text))) for text in ("A?", "B?", "a")]
    assert merge_groups(pairs) == pairs
