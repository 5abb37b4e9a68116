"""A column of token lists, and what can be wrong with one of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from jobs.manifest.manifest import Ints
from jobs.manifest.problems import Problem
from s3gen.constants import START_TOKEN, STOP_TOKEN, TOKEN_RATE, VOCAB_SIZE
from s3gen.splitting import Splitting

MOST_TOKENS = 3_600 * TOKEN_RATE  # of a row that is cut: an hour, whose wave has to be in memory
KNOWN_TOKENS = f"one of 0 to {VOCAB_SIZE - 1}, nor start or stop"


@dataclass(frozen=True, slots=True)
class TokenLists:
    """A column of token lists as one run of values."""

    given: npt.NDArray[Any]  # (T,) every value as stored, nulls as 0
    starts: Ints  # (N + 1,) where each row begins in ``given``
    null_rows: Ints  # numbers of the rows that are null
    null_values: Ints  # places in ``given``, ascending
    kept: Ints  # (K,) values without start and stop
    kept_starts: Ints  # (N + 1,)

    @classmethod
    def of(cls, column: pa.ChunkedArray) -> TokenLists:
        lengths = pc.list_value_length(column)
        starts = np.zeros(len(lengths) + 1, np.int64)
        np.cumsum(lengths.fill_null(0).to_numpy(), out=starts[1:])
        flat = pc.list_flatten(column)
        given = (flat.fill_null(0) if flat.null_count else flat).to_numpy()
        # Only uint64 can be too large for int64, and what is too large is out of range anyway.
        values = np.minimum(given, np.uint64(2**63 - 1)) if given.dtype == np.uint64 else given
        values = values.astype(np.int64)
        special = (values == START_TOKEN) | (values == STOP_TOKEN)
        dropped = np.flatnonzero(special)
        kept = values[~special] if len(dropped) else values
        kept_starts = starts - np.searchsorted(dropped, starts)
        return cls(given, starts, _nulls(lengths), _nulls(flat), kept, kept_starts)

    def of_row(self, row: int) -> Ints:
        return self.kept[self.kept_starts[row] : self.kept_starts[row + 1]]

    def problems(self, max_tokens: int, splitting: Splitting | None, tail: int) -> dict[int, Problem]:
        """By row, the first that applies.

        Args:
            tail: how many tokens are added to each row.
        """
        found: dict[int, Problem] = {}
        counts = np.diff(self.kept_starts)
        most, limit = max_tokens, f"max_tokens, {max_tokens}"
        if splitting is not None and max_tokens < MOST_TOKENS:  # else no row that may be made is cut
            most, limit = MOST_TOKENS, f"an hour, {MOST_TOKENS}, the most that is made in pieces"
        more = f" and {tail} of silence" if tail else ""
        for row in np.flatnonzero(counts + tail > most).tolist():
            found[row] = Problem("too_long", f"{counts[row]} tokens{more}, more than {limit}")
        for row in np.flatnonzero(counts == 0).tolist():
            inside = int(self.starts[row + 1] - self.starts[row])
            message = "no tokens but start and stop" if inside else "no tokens"
            found[row] = Problem("empty_tokens", message)
        for row, place in self._out_of_range():
            at = self.starts[row] + place
            value = "null" if at in self.null_values else str(self.given[at])
            found[row] = Problem("token_out_of_range", f"token {value} at place {place} is not {KNOWN_TOKENS}")
        for row in self.null_rows.tolist():
            found[row] = Problem("null_tokens", "tokens is null")
        return found

    def _out_of_range(self) -> Iterator[tuple[int, int]]:
        """The first bad value of each row that has one: row, place in the row as given."""
        outside = np.flatnonzero((self.given < 0) | (self.given > STOP_TOKEN))
        bad = np.union1d(outside, self.null_values)
        rows = np.searchsorted(self.starts, bad, side="right") - 1
        for row, first in zip(*np.unique(rows, return_index=True), strict=True):
            yield int(row), int(bad[first] - self.starts[row])


def _nulls(column: pa.ChunkedArray) -> Ints:
    if not column.null_count:
        return np.zeros(0, np.int64)
    return np.flatnonzero(column.is_null().to_numpy())
