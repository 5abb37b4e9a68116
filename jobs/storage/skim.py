"""A file of which a little is read here and there, from its beginning on, such as the headers of a tar."""

from __future__ import annotations

from jobs.storage.inputs import read_part, stat_input
from jobs.storage.urls import Options

LEAST_BLOCK, MOST_BLOCK = 1 << 16, 1 << 22  # bytes per request
NEAR = 1 << 19  # bytes: to read on over so many takes no longer than to ask again


class Skimmed:
    """As much of a binary file as reading forwards takes: `read`, `seek`, `tell`.

    What is skipped is not fetched where it is large; where all that is skipped is small, blocks grow, and the file is
    read as a whole, once.

    Raises:
        FileNotFoundError: there is none.
        StorageError: it cannot be read; here or later.
    """

    def __init__(self, url: str, options: Options | None = None) -> None:
        self._url, self._options = url, options
        self._size = stat_input(url, options).size
        self._at = self._start = 0
        self._block, self._length = b"", LEAST_BLOCK

    def tell(self) -> int:
        """The position of what is read next."""
        return self._at

    def seek(self, position: int) -> int:
        """Goes to a position, from the beginning on; fetches nothing."""
        self._at = position
        return position

    def read(self, size: int) -> bytes:
        """Up to ``size`` bytes; fewer only at the end."""
        stop = min(self._at + size, self._size)
        if self._at >= stop:
            return b""
        if self._at < self._start or stop > self._start + len(self._block):
            self._fetch(stop)
        found = self._block[self._at - self._start : stop - self._start]
        self._at += len(found)
        return found

    def _fetch(self, stop: int) -> None:
        end = self._start + len(self._block)
        here = self._start <= self._at <= end + NEAR
        self._length = min(2 * self._length, MOST_BLOCK) if here and end else LEAST_BLOCK
        kept = self._block[self._at - self._start :] if self._start <= self._at < end else b""
        start = self._at + len(kept)
        fetched = read_part(self._url, start, min(max(stop, start + self._length), self._size), self._options)
        self._start, self._block = self._at, kept + fetched
