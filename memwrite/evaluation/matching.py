"""Common blocks of two texts: what `difflib.SequenceMatcher` finds, in nearly linear time."""

from __future__ import annotations

import difflib
from bisect import bisect_left
from collections import defaultdict

#: Blocks up to this length are looked up in a table of all pieces of `b` of that length.
_TABLE_LENGTH = 16


class BlockMatcher(difflib.SequenceMatcher[str]):
    """A `SequenceMatcher` without junk that gives the same blocks in nearly linear time.

    The longest common block comes first, then those on either side of it (Ratcliff and Obershelp 1988).

    Args:
        a: one text.
        b: the other.
    """

    def __init__(self, a: str, b: str) -> None:
        super().__init__(None, a, b, autojunk=False)
        self._a, self._b = a, b
        self._tables: dict[int, dict[str, list[int]]] = {}

    def get_matching_blocks(self) -> list[difflib.Match]:
        """Return all blocks in order, adjacent ones joined, and an empty one at the end."""
        blocks = []
        ranges = [(0, len(self._a), 0, len(self._b), min(len(self._a), len(self._b)))]
        while ranges:
            a_low, a_high, b_low, b_high, limit = ranges.pop()
            i, j, size = self._longest(a_low, a_high, b_low, b_high, limit)
            if size:
                blocks.append((i, j, size))
                ranges.append((a_low, i, b_low, j, size))
                ranges.append((i + size, a_high, j + size, b_high, size))
        joined = [[0, 0, 0]]
        for i, j, size in sorted(blocks):
            last = joined[-1]
            if (last[0] + last[2], last[1] + last[2]) == (i, j):
                last[2] += size
            else:
                joined.append([i, j, size])
        end = difflib.Match(len(self._a), len(self._b), 0)
        return [*(difflib.Match(*block) for block in joined if block[2]), end]

    def _longest(
        self, a_low: int, a_high: int, b_low: int, b_high: int, limit: int
    ) -> tuple[int, int, int]:
        """Return the longest common block within these bounds, none of which is longer than `limit`."""
        limit = min(limit, a_high - a_low, b_high - b_low)
        # Where many blocks are of one length, the next one is most often of that length too.
        if 0 < limit <= _TABLE_LENGTH:
            places = self._places(limit)
            for i in range(a_low, a_high - limit + 1):
                starts = places.get(self._a[i : i + limit], ())
                nearest = bisect_left(starts, b_low)
                if nearest < len(starts) and starts[nearest] + limit <= b_high:
                    return i, starts[nearest], limit
            limit -= 1
        if limit == 0:
            return a_low, b_low, 0
        i, j, size = longest_common_block(self._a[a_low:a_high], self._b[b_low:b_high])
        return a_low + i, b_low + j, size

    def _places(self, length: int) -> dict[str, list[int]]:
        """Return where each piece of `b` of that length starts."""
        if length not in self._tables:
            table = defaultdict(list)
            for start in range(len(self._b) - length + 1):
                table[self._b[start : start + length]].append(start)
            self._tables[length] = dict(table)
        return self._tables[length]


def longest_common_block(a: str, b: str) -> tuple[int, int, int]:
    """Return start in `a`, start in `b` and size of the longest block of both, by a suffix automaton of `b`.

    Of several the first in `a` is returned, and where `b` has that one several times, the first of them.
    """
    edges: list[dict[str, int]] = [{}]
    links, lengths, first_ends = [-1], [0], [0]
    last = 0
    for end, symbol in enumerate(b, 1):
        new = len(edges)
        edges.append({})
        links.append(0)
        lengths.append(end)
        first_ends.append(end)
        state = last
        while state >= 0 and symbol not in edges[state]:
            edges[state][symbol] = new
            state = links[state]
        if state >= 0:
            target = edges[state][symbol]
            if lengths[target] > lengths[state] + 1:
                clone = len(edges)
                edges.append(dict(edges[target]))
                links.append(links[target])
                lengths.append(lengths[state] + 1)
                first_ends.append(first_ends[target])
                links[target] = clone
                while state >= 0 and edges[state].get(symbol) == target:
                    edges[state][symbol] = clone
                    state = links[state]
                target = clone
            links[new] = target
        last = new
    best = (0, 0, 0)
    state = size = 0
    for end, symbol in enumerate(a, 1):
        while state and symbol not in edges[state]:
            state = links[state]
            size = lengths[state]
        if symbol in edges[state]:
            state = edges[state][symbol]
            size += 1
        if size > best[2]:
            best = (end - size, first_ends[state] - size, size)
    return best
