"""The plan: which manifest rows make up which shard. Data, made once, frozen in the output, verified on resume.

A shard is a run of manifest rows in their order. It has at most ``shard_rows`` rows, and about as many tokens as
``shard_rows`` average rows: where rows are longer, fewer go into a shard, so that shards take about equally long.
Lengths are known from Parquet footers only, as a mean per row group.

A finished job may try some rows again (see ``retry``). Its plan then grows: these rows are in one more file of the
manifest, and in shards after the last one. What was planned before stays as it was.

Nothing here reads a file or depends on time, machine or workers.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterable, Iterator, Sequence, Set
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.ipc as ipc
import pyarrow.parquet as pq

from jobs.errors import InputError
from jobs.manifest.manifest import Ints, Manifest, ManifestFile, RowGroups, Span
from jobs.parquet.reader import read_parquet

PLAN_KEY = b"s3gen.plan"
PLAN_VERSION = 1
RANGE_SHARDS = 1_000  # and aligned, so that the first digits of the seven in a shard's name are its range

Member = TypeVar("Member")


@dataclass(frozen=True, slots=True)
class Shard:
    """One unit of work and of commit."""

    index: int
    spans: tuple[Span, ...]
    rows: int


class ShardSet(Set[int]):
    """Some of a plan's shards, at a byte for each of the plan; equal to any set of the same numbers."""

    def __init__(self, size: int) -> None:
        self.mask: npt.NDArray[np.bool_] = np.zeros(size, np.bool_)  # (shards,)

    def add(self, shards: Sequence[int] | Ints) -> None:
        """Takes them in."""
        self.mask[np.asarray(shards, np.int64)] = True

    def __contains__(self, shard: object) -> bool:
        return isinstance(shard, int) and 0 <= shard < len(self.mask) and bool(self.mask[shard])

    def __len__(self) -> int:
        return int(np.count_nonzero(self.mask))

    def __iter__(self) -> Iterator[int]:
        return iter(np.flatnonzero(self.mask).tolist())

    def __repr__(self) -> str:
        return f"<{len(self)} of {len(self.mask)} shards>"

    @classmethod
    def _from_iterable(cls, members: Iterable[Member]) -> Set[Member]:
        """What the operators of sets give: which plan it would be of is not known."""
        return frozenset(members)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """All shards of a job, as the row number at which each begins, and the manifest they are cut from.

    Rows are numbered over all files of the manifest, in their order. The last ``len(again)`` of them were there before.

    Attributes:
        starts: (shards + 1,) ascending; the last one is the number of rows.
        again: (A,) of the rows that are tried again, the number each had at first.
        reseeded: (A,) of each of these, the round that gave it another seed; 0 where none did.
    """

    manifest: Manifest
    starts: Ints
    again: Ints = field(default_factory=lambda: np.zeros(0, np.int64))
    reseeded: Ints = field(default_factory=lambda: np.zeros(0, np.int64))

    def __len__(self) -> int:
        return len(self.starts) - 1

    @property
    def rows(self) -> int:
        """Rows of all shards: those of the manifest, or the limit, and those that are tried again."""
        return int(self.starts[-1])

    @property
    def rows_total(self) -> int:
        """Rows of the manifest, or the limit."""
        return self.rows - len(self.again)

    @cached_property
    def digest(self) -> str:
        """Hex sha256 over the manifest's digest, every cut, and what is tried again."""
        digest = hashlib.sha256(f"{PLAN_VERSION}:{self.manifest.digest}:".encode())
        for numbers in (self.starts, self.again, self.reseeded):
            digest.update(numbers.astype("<i8").tobytes())
        return digest.hexdigest()

    def shard(self, index: int) -> Shard:
        """Shard number ``index``.

        Raises:
            ValueError: there is none of that number.
        """
        if not 0 <= index < len(self):
            raise ValueError(f"no shard {index}: the plan has {len(self)}")
        start, stop = int(self.starts[index]), int(self.starts[index + 1])
        return Shard(index, tuple(self._spans(start, stop)), stop - start)

    def shards(self) -> Iterator[Shard]:
        """All shards in order, one at a time."""
        return (self.shard(index) for index in range(len(self)))

    def rows_of(self, shards: ShardSet) -> int:
        """Rows of some of its shards together."""
        return int(np.diff(self.starts)[shards.mask].sum())

    def origins(self, shard: Shard) -> tuple[list[str], Ints]:
        """Where a shard's rows come from: the URL of each one's file and its row number there, tried again or not."""
        begin = int(self.starts[shard.index]) - self.rows_total
        if begin < 0:
            return self.manifest.origins(shard.spans)
        numbers = self.again[begin : begin + shard.rows].tolist()
        return self.manifest.origins([span for number in numbers for span in self._spans(number, number + 1)])

    def reseeded_by(self, shard: Shard) -> Ints:
        """Of each of a shard's rows the round that gave it another seed, or 0."""
        begin = int(self.starts[shard.index]) - self.rows_total
        return self.reseeded[begin : begin + shard.rows] if begin >= 0 else np.zeros(shard.rows, np.int64)

    def is_taken_up(self, shard: int, urls: Sequence[str], rows: Ints) -> npt.NDArray[np.bool_]:
        """Which of a shard's rows, given by their origins, are tried again in a later one."""
        taken, places = self._last_places
        if not len(taken):
            return np.zeros(len(rows), np.bool_)
        numbers = self.numbers_of(urls, rows)
        at = np.minimum(np.searchsorted(taken, numbers), len(taken) - 1)
        # Within a round a row is there once: whatever comes after the shard is of a later one.
        after = int(self.starts[shard + 1]) - self.rows_total
        return (taken[at] == numbers) & (places[at] >= after)

    def row(self, number: int) -> Span:
        """Where the row of a number lies."""
        return next(self._spans(number, number + 1))

    def numbers_of(self, urls: Sequence[str], rows: Ints) -> Ints:
        """Of rows that are given by their origins, their numbers; -1 where the manifest has no such file."""
        begins = np.array([self._file_begins.get(url, -1) for url in urls], np.int64)
        return np.where(begins < 0, -1, begins + rows)

    @property
    def taken_up(self) -> Ints:
        """(R,) the numbers of all rows that are tried again, ascending, each once."""
        return self._last_places[0]

    @property
    def with_other_seeds(self) -> Ints:
        """(R,) the numbers of the rows whose last try is with another seed than their first, ascending."""
        taken, places = self._last_places
        return taken[self.reseeded[places] > 0]

    @property
    def ranges(self) -> int:
        """How many ranges of ``RANGE_SHARDS`` shards there are; the last one may have fewer."""
        return -(-len(self) // RANGE_SHARDS)

    def range(self, number: int) -> range:
        """The shards of a range."""
        return range(number * RANGE_SHARDS, min((number + 1) * RANGE_SHARDS, len(self)))

    def _spans(self, start: int, stop: int) -> Iterator[Span]:
        ends = self._file_ends
        file = int(np.searchsorted(ends, start, side="right"))
        while start < stop:
            before = int(ends[file - 1]) if file else 0
            until = min(stop, int(ends[file]))
            if start < until:
                yield Span(file, start - before, until - before)
            start, file = until, file + 1

    @cached_property
    def _file_ends(self) -> Ints:
        return np.cumsum([file.rows for file in self.manifest.files], dtype=np.int64)

    @cached_property
    def _last_places(self) -> tuple[Ints, Ints]:
        """The rows that are tried again, ascending, and where each of them is in ``again`` for the last time."""
        taken, places = np.unique(self.again[::-1], return_index=True)
        return taken, len(self.again) - 1 - places

    @cached_property
    def _file_begins(self) -> dict[str, int]:
        begins = self._file_ends - [file.rows for file in self.manifest.files]
        return dict(zip((file.url for file in self.manifest.files), begins.tolist(), strict=True))

    def extended(self, file: ManifestFile, starts: Ints, again: Ints, reseeded: Ints) -> Plan:
        """The plan with rows that are tried again after it.

        Args:
            file: holds these rows, (A,).
            starts: (shards + 1,) of their shards, counted from 0.
            again, reseeded: of these rows, as the attributes.
        """
        # Of a trial the manifest has more rows than are planned: they would be between these and those.
        files = (*self.manifest.head(self.rows).files, file)
        return Plan(
            manifest=Manifest(files=files, columns=self.manifest.columns, base=self.manifest.base),
            starts=np.concatenate([self.starts, self.rows + starts[1:]]),
            again=np.concatenate([self.again, again]),
            reseeded=np.concatenate([self.reseeded, reseeded]),
        )

    def to_bytes(self) -> bytes:
        """As a Parquet file: the numbers as columns, the manifest's files and columns as metadata."""
        files = [asdict(file) for file in self.manifest.files]
        head = {"version": PLAN_VERSION, "digest": self.digest, "files": files}
        metadata = {
            PLAN_KEY: json.dumps(head).encode(),
            b"s3gen.columns": self.manifest.columns.serialize().to_pybytes(),
        }
        columns = {"start": self.starts, "again": self.again, "reseeded": self.reseeded}
        longest = max(map(len, columns.values()))
        table = pa.table({name: _padded(numbers, longest) for name, numbers in columns.items()})
        buffer = io.BytesIO()
        pq.write_table(table.replace_schema_metadata(metadata), buffer, compression="zstd")
        return buffer.getvalue()

    @classmethod
    def from_bytes(cls, data: bytes, base: str = "") -> Plan:
        """What ``to_bytes`` gave.

        Args:
            base: where files lie whose URLs are relative, such as those of rows that are tried again.

        Raises:
            InputError: this is no plan, or a damaged one.
        """
        try:
            table = read_parquet(data)
            head = json.loads(table.schema.metadata[PLAN_KEY])
            columns = ipc.read_schema(pa.py_buffer(table.schema.metadata[b"s3gen.columns"]))
            files = tuple(ManifestFile(**file) for file in head["files"])
            starts, again, reseeded = (table[name].drop_null().to_numpy() for name in ("start", "again", "reseeded"))
            manifest = Manifest(files=files, columns=columns, base=base)
            plan = cls(manifest=manifest, starts=starts, again=again, reseeded=reseeded)
        except (pa.ArrowException, OSError, KeyError, TypeError, ValueError) as error:
            raise InputError(f"the job's plan cannot be read: {type(error).__name__}: {error}") from None
        if plan.digest != head["digest"]:
            raise InputError(f"the job's plan is damaged: its digest is {plan.digest}, it says {head['digest']}")
        return plan


def _padded(numbers: Ints, length: int) -> pa.Array:
    """With nulls after them."""
    return pa.concat_arrays([pa.array(numbers, pa.int64()), pa.nulls(length - len(numbers), pa.int64())])


def make_plan(manifest: Manifest, shard_rows: int, limit: int | None = None) -> Plan:
    """Cuts a scanned manifest, or its first ``limit`` rows, into shards of at most ``shard_rows`` rows.

    Raises:
        ValueError: ``shard_rows`` or ``limit`` is not positive.
    """
    if shard_rows < 1:
        raise ValueError(f"shard_rows must be 1 or more, not {shard_rows}")
    if limit is not None and limit < 1:
        raise ValueError(f"limit must be 1 or more, not {limit}")
    rows = manifest.rows if limit is None else min(limit, manifest.rows)
    return Plan(manifest=manifest, starts=cuts(manifest.groups, rows, shard_rows))


def cuts(groups: Sequence[RowGroups], rows: int, shard_rows: int) -> Ints:
    """Row numbers at which shards of the first ``rows`` rows begin, and ``rows``.

    A shard is closed when it is full: of rows, or of tokens by the mean of the row groups it lies in.
    """
    sizes = np.concatenate([group.rows for group in groups])
    tokens = np.concatenate([group.tokens for group in groups])
    ends = np.minimum(np.cumsum(sizes), rows)
    means = tokens / np.maximum(sizes, 1)
    target = float(tokens.sum()) / float(max(sizes.sum(), 1)) * shard_rows

    starts = [0]
    begin, filled = 0, 0.0  # of the open shard: its first row, its tokens so far
    at = 0
    for end, mean in zip(ends.tolist(), means.tolist(), strict=True):
        while at < end:
            room = shard_rows - (at - begin)
            if mean > 0:
                # Half a row more or less is nothing; at equal lengths it makes every shard exactly full.
                by_tokens = int((target - filled) / mean + 0.5)
                room = min(room, max(by_tokens, 0 if at > begin else 1))
            step = min(room, end - at)
            at += step
            filled += step * mean
            if step == room:
                starts.append(at)
                begin, filled = at, 0.0
    if starts[-1] == rows and len(starts) > 1:
        starts.pop()
    return np.array([*starts, rows], np.int64)
