"""Encoded clips of one shard, in a local file while it is being made: they come longest first, and go in any order."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import IO

from jobs.measures.checks import Measures
from jobs.measures.opinion import Opinion


@dataclass(frozen=True, kw_only=True, slots=True)
class Encoded:
    """A clip as it is stored.

    Attributes:
        trimmed_start, trimmed_end: see `jobs.audio.mastering.Mastered`.
    """

    samples: int
    trimmed_start: int
    trimmed_end: int
    data: bytes
    sha256: str  # hex, of the bytes
    measures: Measures
    problems: tuple[str, ...]  # the checks that it does not pass
    opinion: Opinion | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Clip:
    """What is known of an encoded clip, and where it lies in the spool."""

    samples: int
    trimmed_start: int
    trimmed_end: int
    offset: int
    size: int
    sha256: str
    measures: Measures
    problems: tuple[str, ...]
    opinion: Opinion | None


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
        self.clips[position] = Clip(
            samples=encoded.samples,
            trimmed_start=encoded.trimmed_start,
            trimmed_end=encoded.trimmed_end,
            offset=self._file.tell(),
            size=len(encoded.data),
            sha256=encoded.sha256,
            measures=encoded.measures,
            problems=encoded.problems,
            opinion=encoded.opinion,
        )
        self._file.write(encoded.data)

    def read(self, positions: Sequence[int]) -> Iterator[bytes]:
        """The clips at these positions."""
        for position in positions:
            clip = self.clips[position]
            self._file.seek(clip.offset)
            yield self._file.read(clip.size)
