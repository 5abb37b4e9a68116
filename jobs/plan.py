"""The plan: which manifest rows make up which shard. Data, made once, frozen in the output, verified on resume.

A shard is a run of manifest rows in their order. It has at most ``shard_rows`` rows, and about as many tokens as
``shard_rows`` average rows: where rows are longer, fewer go into a shard, so that shards take about equally long.
Lengths are known from Parquet footers only, as a mean per row group.

Nothing here reads a file or depends on time, machine or workers.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterable, Iterator, Sequence, Set
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.ipc as ipc
import pyarrow.parquet as pq

from jobs.errors import InputError
from jobs.manifest import Ints, Manifest, ManifestFile, RowGroups, Span
from jobs.parquet import read_parquet

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

    Rows are numbered over all files of the manifest, in their order.
    """

    manifest: Manifest
    starts: Ints  # (shards + 1,) ascending; the last one is the number of rows

    def __len__(self) -> int:
        return len(self.starts) - 1

    @property
    def rows(self) -> int:
        """Rows of all shards: those of the manifest, or the limit."""
        return int(self.starts[-1])

    @cached_property
    def digest(self) -> str:
        """Hex sha256 over the manifest's digest and every cut."""
        head = f"{PLAN_VERSION}:{self.manifest.digest}:".encode()
        return hashlib.sha256(head + self.starts.astype("<i8").tobytes()).hexdigest()

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

    def to_bytes(self) -> bytes:
        """As a Parquet file: the cuts as rows, the manifest's files and columns as metadata."""
        files = [asdict(file) for file in self.manifest.files]
        head = {"version": PLAN_VERSION, "digest": self.digest, "files": files}
        metadata = {
            PLAN_KEY: json.dumps(head).encode(),
            b"s3gen.columns": self.manifest.columns.serialize().to_pybytes(),
        }
        schema = pa.schema([pa.field("start", pa.int64(), nullable=False)], metadata=metadata)
        buffer = io.BytesIO()
        pq.write_table(pa.table([pa.array(self.starts)], schema=schema), buffer, compression="zstd")
        return buffer.getvalue()

    @classmethod
    def from_bytes(cls, data: bytes) -> Plan:
        """What ``to_bytes`` gave.

        Raises:
            InputError: this is no plan, or a damaged one.
        """
        try:
            table = read_parquet(data)
            head = json.loads(table.schema.metadata[PLAN_KEY])
            columns = ipc.read_schema(pa.py_buffer(table.schema.metadata[b"s3gen.columns"]))
            manifest = Manifest(files=tuple(ManifestFile(**file) for file in head["files"]), columns=columns)
            plan = cls(manifest=manifest, starts=table["start"].to_numpy())
        except (pa.ArrowException, OSError, KeyError, TypeError, ValueError) as error:
            raise InputError(f"the job's plan cannot be read: {type(error).__name__}: {error}") from None
        if plan.digest != head["digest"]:
            raise InputError(f"the job's plan is damaged: its digest is {plan.digest}, it says {head['digest']}")
        return plan


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
    return Plan(manifest=manifest, starts=_cuts(manifest.groups, rows, shard_rows))


def _cuts(groups: Sequence[RowGroups], rows: int, shard_rows: int) -> Ints:
    """Row numbers at which shards begin, and ``rows``.

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
