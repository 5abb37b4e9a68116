"""Ids that occur in more than one shard, found by workers that each see a share of all ids.

Each range of shards leaves a file of *entries*, one for each row of its part of the index, grouped by partition: an
id's digest decides in which partition it is. Whoever has a partition reads its slices of all these files and so sees
every occurrence of its ids; it leaves a file of *places*, the later occurrences, grouped by range. Whoever has a range
then reads its slices of those.

Ids are taken for equal when their digests are, 128 bits of BLAKE2b: among 10^9 different ids that happens by chance
once in 10^20 jobs.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from jobs.manifest.manifest import Ints
from jobs.storage.folders import Folder

DIGEST_BYTES = 16
PARTITION_ROWS = 4_000_000  # some 100 MB of entries, and as much again three times while they are sorted
# An id's digest, and its row in the range's part of the index.
ENTRY = np.dtype([("high", "<u8"), ("low", "<u8"), ("row", "<u8")])
PLACE = np.dtype([("range", "<u8"), ("row", "<u8")])

Records = npt.NDArray[Any]  # of one of these types


@dataclass(frozen=True, kw_only=True, slots=True)
class Grouped:
    """A file of records in groups, in the order of their numbers.

    Attributes:
        ends: (groups,) bytes up to the end of each group.
    """

    name: str
    ends: Ints

    def slice(self, group: int) -> Slice:
        """One group of it."""
        return Slice(name=self.name, start=int(self.ends[group - 1]) if group else 0, stop=int(self.ends[group]))


@dataclass(frozen=True, kw_only=True, slots=True)
class Slice:
    """Bytes ``start`` to ``stop`` (exclusive) of a file."""

    name: str
    start: int
    stop: int


def partitions(rows: int) -> int:
    """Into how many shares the ids of so many rows are split."""
    return max(1, -(-rows // PARTITION_ROWS))


def entries(ids: pa.ChunkedArray, first_row: int) -> Records:
    """The entries of consecutive rows."""
    texts = ids.to_pylist()
    digests = b"".join(hashlib.blake2b(text.encode(), digest_size=DIGEST_BYTES).digest() for text in texts)
    halves = np.frombuffer(digests, "<u8").reshape(-1, 2)
    found = np.empty(len(texts), ENTRY)
    found["high"], found["low"] = halves[:, 0], halves[:, 1]
    found["row"] = np.arange(first_row, first_row + len(texts))
    return found


def partition_of(found: Records, count: int) -> Ints:
    """The partition of each entry, 0 .. count - 1."""
    return ((found["high"] >> np.uint64(32)) * np.uint64(count) >> np.uint64(32)).astype(np.int64)


def repeated(found: Sequence[Records], ranges: Sequence[int]) -> Records:
    """The places of later occurrences among one partition's entries, in the order of the index.

    Args:
        found: entries of each range, in the order of ``ranges``, which ascend.
    """
    every = np.concatenate(found) if found else np.empty(0, ENTRY)
    range_of = np.repeat(np.asarray(ranges, np.uint64), [len(each) for each in found])
    # Stable: the first of equal ones stays the first.
    order = np.lexsort((every["low"], every["high"]))
    high, low = every["high"][order], every["low"][order]
    later = np.sort(order[1:][(high[1:] == high[:-1]) & (low[1:] == low[:-1])])
    places = np.empty(len(later), PLACE)
    places["range"], places["row"] = range_of[later], every["row"][later]
    return places


def write_grouped(folder: Folder, name: str, records: Records, groups: Ints, count: int) -> Grouped:
    """Stores records by their groups, each group in its order; nothing is written when there are none."""
    ends = np.cumsum(np.bincount(groups, minlength=count)) * records.dtype.itemsize
    if len(records):
        folder.put(name, records[np.argsort(groups, kind="stable")].tobytes())
    return Grouped(name=name, ends=ends)


def read_slice(folder: Folder, part: Slice, kind: np.dtype[Any]) -> Records:
    """The records in a slice of a file."""
    if part.start == part.stop:
        return np.empty(0, kind)
    return np.frombuffer(folder.read(part.name, part.start, part.stop), kind)
