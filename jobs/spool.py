"""Encoded clips of one shard, in a local file while it is being made: they come longest first, and go in any order."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import IO


@dataclass(frozen=True, kw_only=True, slots=True)
class Encoded:
    """A clip as it is stored."""

    samples: int
    data: bytes
    sha256: str  # hex, of the bytes


@dataclass(frozen=True, slots=True)
class Clip:
    """Where an encoded clip lies in the spool."""

    samples: int
    offset: int
    size: int
    sha256: str


class Spool:
    """Clips by position in their shard's table. Memory holds where they lie, not what they are.

    Args:
        file: an empty file, for this alone.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.clips: dict[int, Clip] = {}

    def keep(self, position: int, encoded: Encoded) -> None:
        """Adds a clip; all of them before the first is read."""
        self.clips[position] = Clip(encoded.samples, self._file.tell(), len(encoded.data), encoded.sha256)
        self._file.write(encoded.data)

    def read(self, positions: Sequence[int]) -> Iterator[bytes]:
        """The clips at these positions."""
        for position in positions:
            clip = self.clips[position]
            self._file.seek(clip.offset)
            yield self._file.read(clip.size)
