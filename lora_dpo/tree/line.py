"""A step's pairs in a line, and where to cut it."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable

from lora_dpo.tree.forest import Index


class Line:
    """Pairs in a line, with the distinct tokens of every run of them.

    Chunks share next to nothing, so their tokens simply add up; what little they share is counted for each.

    Args:
        chunks: For each chunk in the line, the tokens of its pairs i to k at [i, k].
    """

    def __init__(self, chunks: Iterable[Index]) -> None:
        self._within: list[list[int]] = []  # tokens from each pair to itself, to the next one, ... to its chunk's last
        self._totals = [0]  # tokens of the line up to each pair, each chunk counted from its first pair
        for tokens in chunks:
            before = self._totals[-1]
            rows = [row[place:] for place, row in enumerate(tokens.tolist())]
            self._within += rows
            self._totals += [before + count for count in rows[0]]

    def __len__(self) -> int:
        """Returns the number of pairs."""
        return len(self._within)

    def tokens(self, start: int, end: int) -> int:
        """Returns the distinct tokens of the pairs start..end, the end left out."""
        within = self._within[start]
        if end - start <= len(within):
            return within[end - start - 1]
        return within[-1] + self._totals[end] - self._totals[start + len(within)]

    def furthest(self, start: int, most: int) -> int:
        """Returns the end of the longest run from `start` that has no more than `most` tokens, or a single pair."""
        within = self._within[start]
        if within[-1] > most:
            return start + max(1, bisect_right(within, most))
        stop = start + len(within)
        return bisect_right(self._totals, most - within[-1] + self._totals[stop], lo=stop) - 1

    def cut(self, parts: int) -> list[int]:
        """Returns the edges of consecutive runs of which the largest is as small as can be, and the others about equal.

        A single pair cannot be cut, so only runs of several pairs are made small.

        Args:
            parts: Number of runs; no more than there are pairs, as none is empty.
        """
        end = len(self)
        most = bisect_left(range(self.tokens(0, end)), True, key=lambda tokens: self._parts(tokens) <= parts)
        needed = [0] * (end + 1)  # parts that the pairs from each one on need at least
        for start in reversed(range(end)):
            needed[start] = 1 + needed[self.furthest(start, most)]
        edges = [0]
        for left in reversed(range(1, parts)):
            start = edges[-1]
            first = bisect_left(needed, -left, lo=start + 1, key=lambda count: -count)
            last = min(self.furthest(start, most), end - left)
            even = self.furthest(start, self.tokens(start, end) // (left + 1))
            edges.append(min(max(even, first), last))
        return [*edges, end]

    def _parts(self, most: int) -> int:
        start = count = 0
        while start < len(self):
            start = self.furthest(start, most)
            count += 1
        return count
