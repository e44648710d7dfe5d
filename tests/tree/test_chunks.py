from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from lora_dpo.tree.chunks import cut_question
from lora_dpo.tree.pairs import PairTokens
from tests.tree.preferences import data_sets, distinct_tokens, entangled


@given(
    pairs=data_sets() | entangled(), most=st.integers(1, 6), tokens=st.sampled_from([None, 1, 6, 12, 40]),
)  # fmt: skip
def test_chunks(pairs: list[PairTokens], most: int, tokens: int | None) -> None:
    members = [index for index, pair in enumerate(pairs) if pair.group == pairs[0].group]
    found = list(cut_question(members, pairs, most, tokens))
    assert [index for chunk in found for index in chunk.pairs] == members
    for number, chunk in enumerate(found):
        own = [pairs[index] for index in chunk.pairs]
        assert 1 <= len(own) <= most
        assert chunk.tokens.shape == (len(own), len(own))
        for first in range(len(own)):
            for last in range(first, len(own)):
                assert chunk.tokens[first, last] == distinct_tokens(own[first : last + 1])
        if tokens is not None:
            assert chunk.tokens[0, -1] <= tokens or len(own) == 1
        if number + 1 < len(found):  # no smaller than it has to be
            following = [*own, pairs[found[number + 1].pairs[0]]]
            full = tokens is not None and distinct_tokens(following) > tokens
            assert len(own) == most or full


def test_tokens_by_hand() -> None:
    # The first and the last pair share an answer; the middle one has nothing but the prompt.
    pairs = [PairTokens([1, 2], *answers, 0) for answers in (([3, 4], [5]), ([6], [7]), ([3, 4], [8]))]
    (chunk,) = cut_question([0, 1, 2], pairs, 8, None)
    assert [row[place:] for place, row in enumerate(chunk.tokens.tolist())] == [[5, 7, 8], [4, 7], [5]]


def test_a_chunk_of_a_question_is_counted_for_itself() -> None:
    # The third pair's chosen answer begins like the first one's. With the second pair it is a chunk of its own, of
    # 2 + 30 + 30 + 51 + 5 = 118 distinct tokens; counted as if the first pair were still there, it is 2 + 60 + 6 = 68.
    beginning = list(range(100, 150))
    pairs = [
        PairTokens([1, 2], [*beginning, 3], [4] * 5, 0),
        PairTokens([1, 2], [5] * 30, [6] * 30, 0),
        PairTokens([1, 2], [*beginning, 7], [8] * 5, 0),
    ]
    chunks = list(cut_question([0, 1, 2], pairs, most=8, tokens=70))
    assert [chunk.pairs for chunk in chunks] == [[0], [1], [2]]
