"""Repetition levels of a Parquet page: which of its values begin a row, and how many the longest row has.

A level of 0 begins a row. Levels are stored as runs, of two kinds: one level and how often it is repeated, or levels
packed bit by bit. How long a row is, is known to within the packed runs at its two ends, which writers keep short.
"""

from __future__ import annotations

from dataclasses import dataclass

MOST_BITS = 35  # of a run's length


@dataclass(slots=True)
class Rows:
    """The rows of a column chunk, page after page.

    Attributes:
        width: bits of a level.
        longest: values of the longest row so far, or somewhat more.
    """

    width: int
    longest: int = 0
    _current: int = 0

    def add(self, levels: bytes, count: int) -> None:
        """Goes on with the levels of a page's values. ValueError: they are damaged."""
        at = 0
        while count > 0:
            head, at = _varint(levels, at)
            size = self.width * (head >> 1) if head & 1 else 1
            run = levels[at : at + size]
            length = min(count, 8 * (head >> 1) if head & 1 else head >> 1)
            if not length or not run:
                raise ValueError("a page's repetition levels are damaged")
            if head & 1:
                self._packed(run, length)
            else:
                self._repeated(run[0], length)
            at += size
            count -= length

    def _repeated(self, level: int, length: int) -> None:
        self._current = self._current + length if level else 1
        self.longest = max(self.longest, self._current)

    def _packed(self, run: bytes, length: int) -> None:
        word = int.from_bytes(run, "little")
        folded = word
        for shift in range(1, self.width):
            folded |= word >> shift
        firsts = ((1 << length * self.width) - 1) // ((1 << self.width) - 1)  # the lowest bit of each level
        self.longest = max(self.longest, self._current + length)
        begins = folded & firsts != firsts
        self._current = length if begins else self._current + length


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while at < len(data) and shift <= MOST_BITS:
        byte = data[at]
        value |= (byte & 127) << shift
        at += 1
        if byte < 128:
            return value, at
        shift += 7
    raise ValueError("a page's repetition levels are damaged")
