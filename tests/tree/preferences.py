"""Pairs that Hypothesis makes up, and what they are made of."""

from __future__ import annotations

from hypothesis import strategies as st

from lora_dpo.tree.forest import build_forest
from lora_dpo.tree.pairs import PairTokens


def pair(question: int, answer: int, length: int = 1) -> PairTokens:
    """Returns a pair whose two answers share their prompt's two tokens with others of its question, and no more."""
    return PairTokens([question, question], [1000 + answer] * length, [2000 + answer], question)


def pairs_of(questions: list[int], length: int = 1) -> list[PairTokens]:
    return [pair(question, i, length) for i, question in enumerate(questions)]


def distinct_tokens(pairs: list[PairTokens]) -> int:
    return len(build_forest([sequence for pair in pairs for sequence in pair.sequences]))


@st.composite
def data_sets(draw: st.DrawFn, max_size: int = 14) -> list[PairTokens]:
    """Draws pairs of a few questions, mixed up; their answers share nothing but the prompt."""
    questions = draw(st.lists(st.integers(0, 4), min_size=1, max_size=max_size))
    lengths = draw(st.lists(st.integers(1, 20), min_size=len(questions), max_size=len(questions)))
    return [pair(question, i, length) for i, (question, length) in enumerate(zip(questions, lengths, strict=True))]


@st.composite
def entangled(draw: st.DrawFn, max_size: int = 8) -> list[PairTokens]:
    """Draws pairs of two questions; answers begin like others, are empty, or come again."""
    answers = st.lists(st.integers(0, 1), max_size=5)
    drawn = draw(st.lists(st.tuples(st.integers(3, 4), answers, answers), min_size=1, max_size=max_size))
    return [PairTokens([question] * 2, chosen, rejected, question) for question, chosen, rejected in drawn]
