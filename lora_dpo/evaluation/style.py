"""How answers are written: length, repetition, refusals, and whether they end by themselves."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TypedDict

from lora_dpo.model.answering import Answer

REFUSALS = (
    r"i(?: a|')m (?:\w+ )?sorry\b(?! to hear)",
    r"i(?: a|')m afraid,? (?:that )?i\b",
    r"(?:sorry|unfortunately),? (?:but )?i (?:can(?:'t|not| not)|won't|am unable|'m unable|do not|don't)",
    r"i apologi[sz]e",
    r"i (?:can(?:'t|not| not)|won't|will not|could not|couldn't) (?:\w+ ){0,2}?"
    r"(?:answer|assist|comment|discuss|fulfill?|help|offer|provide|say|share|speculate|tell|verify)",
    r"i(?: a|')m (?:not able|unable) to",
    r"i (?:must|have to) decline",
    r"i have no (?:comment|opinion|personal)",
    r"i (?:do not|don't) have (?:\w+ ){0,2}?(?:comment|information|opinions?|knowledge|beliefs?)",
    r"(?:as|i(?: a|')m(?: just| only)?) an? (?:ai\b|artificial intelligence|(?:\w+ )?language model)",
    r"no comment",
)
"""What an answer that refuses, apologises or has no comment begins with, as regular expressions on lower-case text.

The list is of English wording, TruthfulQA's "I have no comment" included, which its authors count as true. It knows no
meaning: a refusal in other words is missed, and "I'm sorry, that was my mistake" is taken for one.
"""
_REFUSES = re.compile(rf"\W*(?:{'|'.join(REFUSALS)})")
_WORD = re.compile(r"\w+(?:['’]\w+)*")
_GRAM = 4


class Style(TypedDict):
    """One value an answer, in the answers' order.

    Attributes:
        tokens: Tokens, without the one that ends the turn.
        words: Words: runs of letters, digits and underscores, apostrophes within included.
        repetition: Share of repeated word 4-grams, see `repetition`.
        refusal: 1 for an answer that begins with one of `REFUSALS`, otherwise 0.
        ended: 1 for an answer that the model ended, 0 for one that ran into its limit.
    """

    tokens: list[float]
    words: list[float]
    repetition: list[float]
    refusal: list[float]
    ended: list[float]


def style_of(answers: Sequence[Answer]) -> Style:
    """Returns the numbers of these answers, with which before and after can be compared question by question."""
    return {
        "tokens": [float(len(answer["ids"]) - answer["ended"]) for answer in answers],
        "words": [float(len(_words(answer["text"]))) for answer in answers],
        "repetition": [repetition(answer["text"]) for answer in answers],
        "refusal": [float(refuses(answer["text"])) for answer in answers],
        "ended": [float(answer["ended"]) for answer in answers],
    }


def repetition(text: str) -> float:
    """Returns 1 - distinct / all of a text's word 4-grams, letter case apart; 0 for a text of fewer than 4 words.

    With words in the place of tokens it is seq-rep-4 of Welleck et al., Neural Text Generation With Unlikelihood
    Training (2020). Where words are not set apart by spaces, it says little.
    """
    words = _words(text)
    grams = [tuple(words[start : start + _GRAM]) for start in range(len(words) - _GRAM + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def refuses(text: str) -> bool:
    """Returns whether a text begins with one of `REFUSALS`."""
    return _REFUSES.match(text.casefold().replace("’", "'")) is not None


def _words(text: str) -> list[str]:
    return _WORD.findall(text.casefold())
