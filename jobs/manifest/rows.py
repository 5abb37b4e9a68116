"""The rows of a manifest, and the checks that each goes through before anything is made of it."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from jobs.config.config import JobConfig
from jobs.manifest.manifest import Ints
from s3gen.constants import START_TOKEN, STOP_TOKEN, TOKEN_RATE, VOCAB_SIZE
from s3gen.splitting import Splitting

EXACT_FLOAT = 2**53  # whole numbers up to here are exact in float64
MOST_TOKENS = 3_600 * TOKEN_RATE  # of a row that is cut: an hour, whose wave has to be in memory
KNOWN_TOKENS = f"one of 0 to {VOCAB_SIZE - 1}, nor start or stop"


@dataclass(frozen=True, slots=True)
class Row:
    """A row that can be synthesised."""

    position: int  # in the table that was checked
    id: str
    voice_id: str
    tokens: Ints  # (L,) 0..6560, without the language model's start and stop; with the tail that the job adds
    seed: int  # -2**63 .. 2**64 - 1
    reseeded: bool = False  # it is not its own, nor that which follows from its id
    cuts: tuple[int, ...] = ()  # of the tokens, ascending: it is made in so many pieces and one


@dataclass(frozen=True, slots=True)
class Failure:
    """A row that cannot be, and why."""

    position: int
    id: str | None
    voice_id: str | None
    error: str  # a code, see check_rows
    message: str


def job_rows(table: pa.Table, config: JobConfig, reseeded: Ints | None = None) -> tuple[list[Row], list[Failure]]:
    """`check_rows` as a job's configuration has it: for all who make, count or verify its rows, so that they agree."""
    return check_rows(
        table,
        job_seed=config.seed,
        max_tokens=config.max_tokens,
        splitting=config.splitting,
        reseeded=reseeded,
        tail=config.tail,
    )


def check_rows(
    table: pa.Table,
    *,
    job_seed: int,
    max_tokens: int,
    splitting: Splitting | None = None,
    reseeded: Ints | None = None,
    tail: Sequence[int] = (),
) -> tuple[list[Row], list[Failure]]:
    """Sorts the rows of a shard into those that can be synthesised and those that cannot.

    The codes of the failures, of which a row gets the first that applies: ``null_id``, ``bad_id`` (not UTF-8),
    ``null_voice_id``, ``bad_voice_id``, ``null_tokens``, ``token_out_of_range`` (a value other than 0..6560 and the
    start and stop tokens 6561 and 6562, or a null), ``empty_tokens`` (nothing left without start and stop),
    ``too_long``, ``bad_seed``, ``duplicate_id`` (an earlier row of this table, good or bad, has the id).

    A row without a seed gets ``int.from_bytes(sha256(f"{job_seed}:{id}" in UTF-8).digest()[:8], "big")``.

    Args:
        splitting: cuts rows that are longer than its own limit, and none is too long below an hour; None: nothing is.
        reseeded: (rows,) of each row the round that gave it another seed, which goes before its own; 0: none did.
        tail: tokens that are added to each row's own, and count as they do.

    Raises:
        Nothing for any value of a row.
    """
    ids, voices = texts(table["id"]), texts(table["voice_id"])
    tokens = _Tokens.of(table["tokens"])
    seeds = _seeds(table["seed"]) if "seed" in table.column_names else [None] * table.num_rows
    problems = tokens.problems(max_tokens, splitting, len(tail))
    rounds = [0] * table.num_rows if reseeded is None else reseeded.tolist()
    bits = _seed_bits(table["seed"].type) if "seed" in table.column_names else 64
    rows: list[Row] = []
    failures: list[Failure] = []
    seen: set[str] = set()
    for position, (row_id, voice_id, seed) in enumerate(zip(ids, voices, seeds, strict=True)):
        problem = (
            text_problem("id", row_id)
            or text_problem("voice_id", voice_id)
            or problems.get(position)
            or (seed if isinstance(seed, _Problem) else None)
        )
        if isinstance(row_id, str):
            if problem is None and row_id in seen:
                problem = _Problem("duplicate_id", f"an earlier row of this shard has the id {_shown(row_id)}")
            seen.add(row_id)
        if problem is not None or not isinstance(row_id, str) or not isinstance(voice_id, str):
            code, message = problem or _Problem("bad_id", "no usable id")
            known = [text if isinstance(text, str) else None for text in (row_id, voice_id)]
            failures.append(Failure(position, known[0], known[1], code, message))
            continue
        chosen = seed if isinstance(seed, int) else derived_seed(job_seed, row_id)
        if rounds[position]:
            chosen = derived_seed(job_seed, row_id, rounds[position]) >> (64 - bits)
        spoken = np.append(tokens.of_row(position), tail) if tail else tokens.of_row(position)
        cuts = () if splitting is None else tuple(splitting.cuts(spoken))
        rows.append(Row(position, row_id, voice_id, spoken, chosen, rounds[position] > 0, cuts))
    return rows, failures


def derived_seed(job_seed: int, row_id: str, tried_in: int = 0) -> int:
    """The seed of a row that has none: the first 8 bytes of sha256 of ``"{job_seed}:{id}"``, big-endian, unsigned.

    Args:
        tried_in: the round in which the row got another seed; of ``"{job_seed}:{id}:{tried_in}"`` then.
    """
    text = f"{job_seed}:{row_id}:{tried_in}" if tried_in else f"{job_seed}:{row_id}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def _seed_bits(kind: pa.DataType) -> int:
    """How long a seed may be that a column of this type holds exactly, and that is not negative."""
    if pa.types.is_integer(kind):
        return int(kind.bit_width) - pa.types.is_signed_integer(kind)
    return {16: 11, 32: 24, 64: 53}[kind.bit_width]


class _Problem(NamedTuple):
    error: str
    message: str


def texts(column: pa.ChunkedArray) -> list[str | bytes | None]:
    """The texts of a column; what is not valid UTF-8 comes as bytes."""
    chunks = [chunk.dictionary_decode() if pa.types.is_dictionary(column.type) else chunk for chunk in column.chunks]
    texts: list[str | bytes | None] = []
    for chunk in chunks:
        try:
            texts.extend(chunk.to_pylist())
        except UnicodeDecodeError:
            texts.extend(_decoded(value) for value in chunk.cast(pa.large_binary()).to_pylist())
    return texts


def _decoded(value: bytes | None) -> str | bytes | None:
    try:
        return value if value is None else value.decode()
    except UnicodeDecodeError:
        return value


def text_problem(column: str, value: str | bytes | None) -> _Problem | None:
    """What is wrong with an id, as the failures table says it: there is none, or it is not UTF-8."""
    if isinstance(value, str):
        return None
    if value is None:
        return _Problem(f"null_{column}", f"{column} is null")
    return _Problem(f"bad_{column}", f"{column} is not valid UTF-8: {_shown(value)}")


def _shown(value: str | bytes) -> str:
    text = repr(value[:200])
    return text if len(value) <= 200 else f"{text}... ({len(value)} long)"


def _seeds(column: pa.ChunkedArray) -> list[int | _Problem | None]:
    if pa.types.is_integer(column.type):
        seeds: list[int | _Problem | None] = column.to_pylist()
        return seeds
    return [_float_seed(value) for value in column.to_pylist()]


def _float_seed(value: float | None) -> int | _Problem | None:
    if value is None or math.isnan(value):
        return None
    if math.isinf(value) or value != int(value) or abs(value) > EXACT_FLOAT:
        return _Problem("bad_seed", f"seed {value} is not a whole number of up to 2**53; store seeds as integers")
    return int(value)


@dataclass(frozen=True, slots=True)
class _Tokens:
    """A column of token lists as one run of values."""

    given: npt.NDArray[Any]  # (T,) every value as stored, nulls as 0
    starts: Ints  # (N + 1,) where each row begins in ``given``
    null_rows: Ints  # numbers of the rows that are null
    null_values: Ints  # places in ``given``, ascending
    kept: Ints  # (K,) values without start and stop
    kept_starts: Ints  # (N + 1,)

    @classmethod
    def of(cls, column: pa.ChunkedArray) -> _Tokens:
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

    def problems(self, max_tokens: int, splitting: Splitting | None, tail: int) -> dict[int, _Problem]:
        """By row, the first that applies.

        Args:
            tail: how many tokens are added to each row.
        """
        found: dict[int, _Problem] = {}
        counts = np.diff(self.kept_starts)
        most, limit = max_tokens, f"max_tokens, {max_tokens}"
        if splitting is not None and max_tokens < MOST_TOKENS:  # else no row that may be made is cut
            most, limit = MOST_TOKENS, f"an hour, {MOST_TOKENS}, the most that is made in pieces"
        more = f" and {tail} of silence" if tail else ""
        for row in np.flatnonzero(counts + tail > most).tolist():
            found[row] = _Problem("too_long", f"{counts[row]} tokens{more}, more than {limit}")
        for row in np.flatnonzero(counts == 0).tolist():
            inside = int(self.starts[row + 1] - self.starts[row])
            message = "no tokens but start and stop" if inside else "no tokens"
            found[row] = _Problem("empty_tokens", message)
        for row, place in self._out_of_range():
            at = self.starts[row] + place
            value = "null" if at in self.null_values else str(self.given[at])
            found[row] = _Problem("token_out_of_range", f"token {value} at place {place} is not {KNOWN_TOKENS}")
        for row in self.null_rows.tolist():
            found[row] = _Problem("null_tokens", "tokens is null")
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
