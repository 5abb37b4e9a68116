"""The last step of a job: the parts that its shards left become the tables of the whole output.

Parts are read in shard order, a few at a time. What grows with the job is 8 bytes per row, by which ids that occur in
two shards are found; those ids themselves are then looked up in the finished index.
"""

from __future__ import annotations

import contextlib
import hashlib
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from jobs.errors import StorageError
from jobs.parquet import read_parquet
from jobs.plan import Plan
from jobs.records import CommitRecord, StoredFile
from jobs.storage import Folder
from jobs.tables import DUPLICATES_SCHEMA, INDEX_SCHEMA, failures_schema
from s3gen.constants import SAMPLE_RATE

ROW_GROUP_ROWS = 65_536  # of the finished tables
READ_AHEAD = 64  # parts in memory
READ_THREADS = 16

Records = Callable[[], Iterator[CommitRecord]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Summary:
    """A finished job in numbers."""

    shards: int
    rows_total: int
    rows_done: int
    rows_failed: int
    duplicates: int  # rows whose id an earlier shard has too
    samples: int
    speed: float  # seconds of audio per second in which at least one shard was in work
    finished_at: float

    @property
    def exit_code(self) -> int:
        """0 when every row was synthesised under an id of its own, else 3."""
        return 3 if self.rows_failed or self.duplicates else 0


def write_tables(folder: Folder, plan: Plan, records: Records, confirm: Callable[[], None]) -> Summary:
    """Writes ``index.parquet``, ``failures.parquet`` and, if an id occurs in two shards, ``duplicates.parquet``.

    Args:
        records: gives the commit records in shard order; called several times.
        confirm: raises when this run may no longer write.
    """
    tally = Tally()
    with tempfile.TemporaryDirectory(prefix="s3gen-") as scratch:
        index, failures, duplicates = (Path(scratch) / name for name in ("index", "failures", "duplicates"))
        hashes = _Hashes()
        parts = _parts(folder, (record.index for record in tally.counting(records())))
        _write(index, INDEX_SCHEMA, hashes.noting(parts))
        failed = _parts(folder, (record.failures for record in records()))
        _write(failures, failures_schema(plan.manifest.columns), failed)
        doubled = _write(duplicates, DUPLICATES_SCHEMA, _duplicates(index, hashes.repeated()))
        confirm()
        folder.upload("index.parquet", index)
        folder.upload("failures.parquet", failures)
        if doubled:
            folder.upload("duplicates.parquet", duplicates)
        else:
            folder.delete("duplicates.parquet")
    return Summary(
        shards=len(plan),
        rows_total=plan.rows,
        rows_done=tally.rows_done,
        rows_failed=tally.rows_failed,
        duplicates=doubled,
        samples=tally.samples,
        speed=tally.speed,
        finished_at=time.time(),
    )


class Tally:
    """Sums over commit records."""

    def __init__(self) -> None:
        self.shards = self.rows_done = self.rows_failed = self.samples = 0
        self._times: list[tuple[float, float]] = []

    def counting(self, records: Iterable[CommitRecord]) -> Iterator[CommitRecord]:
        """Passes the records on and adds them up."""
        for record in records:
            self.shards += 1
            self.rows_done += record.rows_done
            self.rows_failed += record.rows_failed
            self.samples += record.samples
            self._times.append((record.started_at, record.finished_at))
            yield record

    @property
    def audio_seconds(self) -> float:
        """Seconds of audio in all records."""
        return self.samples / SAMPLE_RATE

    @property
    def speed(self) -> float:
        """Seconds of audio per second in which at least one committed shard was in work; 0 before the first.

        Pauses between runs do not count, nor does work that was lost.
        """
        busy, until = 0.0, float("-inf")
        for start, end in sorted(self._times):
            busy += max(0.0, end - max(start, until))
            until = max(until, end)
        return self.audio_seconds / busy if busy > 0 else 0.0


class _Hashes:
    """64-bit hashes of all ids, in the order of the index."""

    def __init__(self) -> None:
        self._parts: list[np.ndarray[tuple[int], np.dtype[np.uint64]]] = []

    def noting(self, tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
        for table in tables:
            hashes = (_hash(row_id) for row_id in table["id"].to_pylist())
            self._parts.append(np.fromiter(hashes, np.uint64, table.num_rows))
            yield table

    def repeated(self) -> set[int]:
        """The hashes that occur more than once; of different ids, about once in 10^9 rows."""
        every = np.sort(np.concatenate(self._parts)) if self._parts else np.zeros(0, np.uint64)
        return set(every[1:][every[1:] == every[:-1]].tolist())


def _hash(row_id: str) -> int:
    return int.from_bytes(hashlib.blake2b(row_id.encode(), digest_size=8).digest(), "little")


def _duplicates(index: Path, repeated: set[int]) -> Iterator[pa.Table]:
    """Every later occurrence of an id."""
    if not repeated:
        return
    seen: set[str] = set()
    for batch in pq.ParquetFile(index).iter_batches(columns=DUPLICATES_SCHEMA.names, use_threads=False):
        later = []
        for at, row_id in enumerate(batch["id"].to_pylist()):
            if _hash(row_id) in repeated:
                if row_id in seen:
                    later.append(at)
                seen.add(row_id)
        yield pa.Table.from_batches([batch.take(pa.array(later, pa.int64()))])


def _parts(folder: Folder, files: Iterable[StoredFile | None]) -> Iterator[pa.Table]:
    """The tables in these files, in order, read ahead in parallel."""
    present = (file for file in files if file is not None)
    with ThreadPoolExecutor(READ_THREADS) as pool:
        while chunk := list(islice(present, READ_AHEAD)):
            yield from pool.map(lambda file: read_part(folder, file), chunk)


def read_part(folder: Folder, file: StoredFile) -> pa.Table:
    """A small Parquet file that a record vouches for.

    Raises:
        StorageError: it is gone, or its bytes are not those that were committed.
    """
    try:
        data = folder.read(file.name)
    except FileNotFoundError:
        raise StorageError(f"{folder.path(file.name)} is missing; a commit record names it") from None
    if len(data) != file.bytes or hashlib.sha256(data).hexdigest() != file.sha256:
        raise StorageError(f"{folder.path(file.name)} is damaged: it is not what was committed")
    return read_parquet(data)


def _write(path: Path, schema: pa.Schema, tables: Iterable[pa.Table]) -> int:
    """Writes tables of one schema as one Parquet file; returns its rows."""
    rows, pending, waiting = 0, [], 0
    with contextlib.closing(pq.ParquetWriter(path, schema, compression="zstd")) as writer:
        for table in tables:
            pending.append(table.select(schema.names).cast(schema))
            waiting += table.num_rows
            if waiting >= ROW_GROUP_ROWS:
                writer.write_table(pa.concat_tables(pending), row_group_size=ROW_GROUP_ROWS)
                rows, pending, waiting = rows + waiting, [], 0
        if waiting:
            writer.write_table(pa.concat_tables(pending), row_group_size=ROW_GROUP_ROWS)
    return rows + waiting
