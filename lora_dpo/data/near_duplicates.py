"""Finds prompts of different splits that are nearly the same text.

Groups keep equal questions together; this looks for those that differ by a word. Compared are the sets of character
5-grams: two prompts are near duplicates if their Jaccard similarity is at least 0.8. Candidates come from prefix
filtering (Bayardo, Ma, Srikant: Scaling Up All Pairs Similarity Search, 2007): sets that similar must share one of
their rarest 20 % of elements. A bitmap of each set then rules out most of them, and the rest is compared exactly.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from lora_dpo.data.pair import Asked, normalised, prompt_text
from lora_dpo.recipe.schema import SplitName

GRAM_LENGTH = 5
MIN_SIMILARITY = 0.8

# Thousands of prompts may share a template and with it all their 5-grams. Each is then compared with this many of the
# nearest length only: work stays proportional to the text, and a cluster is still reported, if not every pair in it.
_NEIGHBOURS = 20
_FREQUENCY_MASK = np.uint32((1 << 24) - 1)
_BITS = 1024
_CHUNK = 100_000  # candidates looked at together: 13 MB of bitmaps a side
_HASH_BASE = 0x9E3779B97F4A7C15  # odd and without pattern (2**64 / golden ratio)

Hashes = npt.NDArray[np.uint32]


class NearDuplicate(NamedTuple):
    """Two prompts of different splits and groups that are nearly the same."""

    split_a: SplitName
    prompt_a: str
    split_b: SplitName
    prompt_b: str
    similarity: float


class _Prompt(NamedTuple):
    split: SplitName
    group: str
    text: str
    compared: str


def near_duplicates(
    splits: Mapping[SplitName, Sequence[Asked]], min_similarity: float = MIN_SIMILARITY
) -> list[NearDuplicate]:
    """Returns near-duplicate prompts across splits, the most similar first; their number is the list's length.

    System turns, letter case and runs of white space are not compared. 60,000 long prompts take about half a minute.

    Args:
        splits: Pairs or examples by split.
        min_similarity: Smallest Jaccard similarity of character 5-grams, above 0.
    """
    prompts = _distinct_prompts(splits)
    grams_of = lru_cache(maxsize=4096)(lambda index: grams(prompts[index].compared))
    found = []
    for a, b in _candidates(prompts, min_similarity):
        similarity = jaccard(grams_of(a), grams_of(b))
        if similarity >= min_similarity:
            first, second = prompts[a], prompts[b]
            found.append(NearDuplicate(first.split, first.text, second.split, second.text, similarity))
    return sorted(found, key=lambda pair: (-pair.similarity, pair))


def grams(text: str) -> frozenset[str]:
    """Returns the character 5-grams of a text; a shorter text is its own only one."""
    return frozenset([text[i : i + GRAM_LENGTH] for i in range(max(1, len(text) - GRAM_LENGTH + 1))])


def jaccard(a: frozenset[str], b: frozenset[str]) -> float:
    """Returns the size of the intersection over the size of the union."""
    shared = len(a & b)
    return shared / (len(a) + len(b) - shared)


def _distinct_prompts(splits: Mapping[SplitName, Sequence[Asked]]) -> list[_Prompt]:
    prompts: dict[_Prompt, None] = {}
    for split, pairs in splits.items():
        for pair in pairs:
            turns = tuple(turn for turn in pair.prompt if turn["role"] != "system")
            text = turns[0]["content"] if len(turns) == 1 else prompt_text(turns)
            prompts[_Prompt(split, pair.group, text, normalised(text))] = None
    return list(prompts)


def _candidates(prompts: Sequence[_Prompt], min_similarity: float) -> Iterator[tuple[int, int]]:
    """Yields pairs of indices of prompts in different splits and groups that may be similar enough."""
    if len({prompt.split for prompt in prompts}) < 2:
        return
    hashes = [_gram_hashes(prompt.compared) for prompt in prompts]
    sizes = np.array([len(own) for own in hashes])
    split, group = _codes([prompt.split for prompt in prompts]), _codes([prompt.group for prompt in prompts])
    gram, owner = _rarest_grams(hashes, min_similarity)
    # Within one 5-gram by size, since similar sets have similar sizes; stable, so that clusters meet in one order.
    order = np.lexsort((sizes[owner], gram))
    gram, owner = gram[order], owner[order]
    codes = np.empty(0, dtype=np.int64)
    for distance in range(1, _NEIGHBOURS + 1):
        same = np.flatnonzero(gram[:-distance] == gram[distance:])
        if not len(same):
            break
        a, b = owner[same], owner[same + distance]
        smaller, larger = np.minimum(sizes[a], sizes[b]), np.maximum(sizes[a], sizes[b])
        possible = (split[a] != split[b]) & (group[a] != group[b]) & (smaller >= min_similarity * larger)
        low, high = np.minimum(a, b)[possible], np.maximum(a, b)[possible]
        codes = np.union1d(codes, low * len(prompts) + high)
    a, b = np.divmod(codes, len(prompts))
    bitmaps = np.stack([_bitmap(own) for own in hashes])
    for start in range(0, len(codes), _CHUNK):
        part = slice(start, start + _CHUNK)
        differing = np.bitwise_count(bitmaps[a[part]] ^ bitmaps[b[part]]).sum(axis=1)
        # Jaccard >= s means at most this many elements are in one set only; each flips at most one bit.
        allowed = (sizes[a[part]] + sizes[b[part]]) * (1 - min_similarity) / (1 + min_similarity)
        for index in np.flatnonzero(differing <= allowed + 1e-9) + start:
            yield int(a[index]), int(b[index])


def _rarest_grams(hashes: Sequence[Hashes], min_similarity: float) -> tuple[Hashes, npt.NDArray[np.int64]]:
    """Returns the rarest 5-grams of each prompt, as many as one of them must be shared, and whose they are."""
    frequency = np.zeros(int(_FREQUENCY_MASK) + 1, dtype=np.uint64)
    for own in hashes:
        frequency[own & _FREQUENCY_MASK] += np.uint64(1)
    rarest: list[Hashes] = []
    for own in hashes:
        # Any order that is the same for all prompts would do; rarest first makes the fewest candidates.
        rank = (frequency[own & _FREQUENCY_MASK] << np.uint64(32)) | own
        count = len(own) - math.ceil(min_similarity * len(own) - 1e-9) + 1
        first = np.partition(rank, count - 1)[:count] if count < len(rank) else rank
        rarest.append(first.astype(np.uint32))  # the low 32 bits are the hash
    owner = np.repeat(np.arange(len(hashes)), [len(own) for own in rarest])
    return np.concatenate(rarest), owner


def _bitmap(hashes: Hashes) -> npt.NDArray[np.uint64]:
    """Returns, packed, for each of `_BITS` residues whether an odd number of the hashes has it."""
    parity = np.bincount(hashes % _BITS, minlength=_BITS) & 1
    return np.packbits(parity.astype(np.uint8)).view(np.uint64)


def _gram_hashes(text: str) -> Hashes:
    """Returns distinct 32-bit hashes of the 5-grams; what collides is told apart when compared exactly."""
    points = np.frombuffer(text.encode("utf-32-le"), dtype=np.uint32).astype(np.uint64)
    points = np.pad(points, (0, max(0, GRAM_LENGTH - len(points))))
    windows = len(points) - GRAM_LENGTH + 1
    hashed = np.zeros(windows, dtype=np.uint64)
    for offset in range(GRAM_LENGTH):
        hashed = (hashed + points[offset : offset + windows]) * np.uint64(_HASH_BASE)
    return np.unique((hashed >> np.uint64(32)).astype(np.uint32))


def _codes(names: Sequence[str]) -> npt.NDArray[np.int64]:
    return np.unique(names, return_inverse=True)[1]
