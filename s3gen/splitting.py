"""Long utterances in pieces: where they are cut.

The flow attends over all of a row, so its time grows with the square of the length. A piece is made as a row of its own
and reads some tokens beyond each of its cuts; its neighbour reads them too, and around the cut one fades into the other
(see `crossfade`). Where the cuts are follows from the tokens alone.

Shape letters: T tokens.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from s3gen.constants import SILENCE_TOKEN, VOCAB_SIZE
from s3gen.integers import integer

# The vocoder reads 6.25 tokens to either side and the encoder 3 to the right; attention reads all there is.
CONTEXT_TOKENS = 12  # that a piece reads beyond a cut
LEAST_MAX_TOKENS = 4 * CONTEXT_TOKENS  # with less, most of a piece could be context
PAUSE_TOKENS = 2  # a shorter run of silence does not hold the cross-fade of one token

Tokens = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of an utterance, counted in tokens of it.

    Attributes:
        start, end: what it reads.
        first, last: what is kept of it, up to the cross-fades; `last` is not part of it.
    """

    start: int
    end: int
    first: int
    last: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Splitting:
    """Which utterances are cut, and where.

    Attributes:
        max_tokens: that a piece may read, so that no longer utterance is left whole; at least 48.
        silence_tokens: what pauses are made of; none: all cuts are in the middle.

    Raises:
        ValueError: a value that will not do.
    """

    max_tokens: int
    silence_tokens: tuple[int, ...] = (SILENCE_TOKEN,)

    def __post_init__(self) -> None:
        limit = integer(self.max_tokens)
        if limit is None or limit < LEAST_MAX_TOKENS:
            raise ValueError(
                f"max_tokens is {self.max_tokens!r}, but to cut utterances takes an integer of at least "
                f"{LEAST_MAX_TOKENS}: a piece reads {CONTEXT_TOKENS} tokens beyond each of its cuts"
            )
        object.__setattr__(self, "max_tokens", limit)
        object.__setattr__(self, "silence_tokens", _checked_silence(self.silence_tokens))

    def cuts(self, tokens: Tokens) -> list[int]:
        """Where an utterance is cut so that no piece reads more than `max_tokens`.

        What is too long is cut in two, and its halves likewise: in the middle of a pause, which is a run of two or more
        silence tokens; of those in the middle half the longest, and of equally long ones the nearest to the middle.
        Without a pause there, in the middle.

        Args:
            tokens: (T,) integers.

        Returns:
            Ascending; a cut at n is between tokens n - 1 and n. Empty where T is at most `max_tokens`.
        """
        if len(tokens) <= self.max_tokens:
            return []
        pauses = _pauses(tokens, self.silence_tokens)
        return list(self._cuts(0, len(tokens), len(tokens), pauses))

    def _cuts(self, first: int, last: int, total: int, pauses: _Pauses) -> Iterator[int]:
        piece = _piece(first, last, total)
        if piece.end - piece.start > self.max_tokens:
            cut = pauses.best(first, last)
            yield from self._cuts(first, cut, total, pauses)
            yield cut
            yield from self._cuts(cut, last, total, pauses)


@dataclass(frozen=True, slots=True)
class _Pauses:
    """Runs of silence that are long enough, in their order."""

    middles: Tokens
    lengths: Tokens

    def best(self, first: int, last: int) -> int:
        """Where a piece of tokens `first` .. `last` is cut in two."""
        middle, quarter = (first + last) // 2, (last - first) // 4
        low, high = np.searchsorted(self.middles, (first + quarter, last - quarter + 1))
        if low == high:
            return middle
        # Of the keys the last one decides first.
        order = np.lexsort((np.abs(self.middles[low:high] - middle), -self.lengths[low:high]))
        return int(self.middles[low + order[0]])


def _checked_silence(tokens: Iterable[int]) -> tuple[int, ...]:
    if not isinstance(tokens, Iterable):
        raise ValueError(f"silence_tokens is {tokens!r}, but must be a list of tokens, such as ({SILENCE_TOKEN},)")
    checked = []
    for given in tokens:
        token = integer(given)
        if token is None or not 0 <= token < VOCAB_SIZE:
            raise ValueError(f"silence_tokens holds {given!r}, but speech tokens are integers 0..{VOCAB_SIZE - 1}")
        checked.append(token)
    return tuple(checked)


def _pauses(tokens: Tokens, silence: Sequence[int]) -> _Pauses:
    silent = np.isin(tokens, silence)
    edges = np.flatnonzero(np.diff(silent, prepend=False, append=False))
    starts, ends = edges[::2], edges[1::2]
    long = ends - starts >= PAUSE_TOKENS
    return _Pauses((starts[long] + ends[long]) // 2, (ends - starts)[long])


def pieces(tokens: int, cuts: Sequence[int]) -> list[Piece]:
    """The pieces of an utterance of so many tokens; without cuts one, which is all of it."""
    return [_piece(first, last, tokens) for first, last in pairwise([0, *cuts, tokens])]


def _piece(first: int, last: int, total: int) -> Piece:
    return Piece(max(0, first - CONTEXT_TOKENS), min(total, last + CONTEXT_TOKENS), first, last)
