"""Tables in parts: small Parquet files that shards left, and the larger ones that ranges of shards become.

Everything streams: some parts, or some thousand rows, are in memory at a time.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from jobs.errors import StorageError
from jobs.ledger.records import StoredFile
from jobs.parquet.reader import read_parquet
from jobs.storage.folders import Folder

ROW_GROUP_ROWS = 65_536  # of the finished tables ...
READ_GROUP_ROWS = 4_096  # ... and of those that are manifests: a shard's rows are read from the beginning of a group on
BATCH_ROWS = 8_192
READ_AHEAD = 64  # parts of shards in memory
READ_THREADS = 16


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """A range's part of a table, as it was written."""

    name: str
    bytes: int
    rows: int
    sha256: str


def read_shards(folder: Folder, files: Iterable[StoredFile | None]) -> Iterator[pa.Table]:
    """The tables in the files of shards, in order, read ahead in parallel; shards without one are passed over."""
    present = (file for file in files if file is not None)
    with ThreadPoolExecutor(READ_THREADS) as pool:
        while chunk := list(islice(present, READ_AHEAD)):
            yield from pool.map(lambda file: read_shard(folder, file), chunk)


def read_shard(folder: Folder, file: StoredFile) -> pa.Table:
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


def read_parts(folder: Folder, parts: Iterable[Part], columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
    """The rows of ranges' parts, in order, some thousand at a time.

    Raises:
        StorageError: one is gone, or is not what was written.
    """
    for part in parts:
        try:
            with folder.open(part.name) as handle:
                size = handle.seek(0, 2)
                parquet = pq.ParquetFile(handle)
                if (size, parquet.metadata.num_rows) != (part.bytes, part.rows):
                    raise StorageError(f"{folder.path(part.name)} is not what was written, {part.bytes} bytes")
                for batch in parquet.iter_batches(batch_size=BATCH_ROWS, columns=columns, use_threads=False):
                    yield pa.Table.from_batches([batch])
        except FileNotFoundError:
            raise StorageError(f"{folder.path(part.name)} is missing; it was written a moment ago") from None
        except (pa.ArrowException, OSError) as error:
            raise StorageError(f"{folder.path(part.name)} cannot be read: {error}") from None


def write_table(name: str, schema: pa.Schema, tables: Iterable[pa.Table], scratch: Path, *, group_rows: int) -> Part:
    """Writes tables of one schema as one local Parquet file; the same tables always give the same file.

    Args:
        name: where it will be uploaded to.
        group_rows: of its row groups.
    """
    rows, pending, waiting = 0, [], 0
    with contextlib.closing(pq.ParquetWriter(scratch, schema, compression="zstd")) as writer:
        for table in tables:
            pending.append(table.select(schema.names).cast(schema))
            waiting += table.num_rows
            while waiting >= group_rows:
                ready = pa.concat_tables(pending)
                writer.write_table(ready.slice(0, group_rows), row_group_size=group_rows)
                rows, waiting = rows + group_rows, waiting - group_rows
                pending = [ready.slice(group_rows)]
        if waiting:
            writer.write_table(pa.concat_tables(pending), row_group_size=group_rows)
    with scratch.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return Part(name=name, bytes=scratch.stat().st_size, rows=rows + waiting, sha256=digest)
