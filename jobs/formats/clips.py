"""One clip out of a shard, without reading the others where the format allows it."""

from __future__ import annotations

import tarfile
from itertools import islice
from typing import IO

import pyarrow as pa
import pyarrow.parquet as pq

from jobs.errors import StorageError
from jobs.storage.folders import Folder


def read_clip(folder: Folder, shard: str, row: int) -> bytes:
    """The stored audio file of one row: of a Parquet shard its row group is read, of a tar the headers before it.

    Args:
        shard: its name, as the index has it.
        row: in the shard, from 0.

    Raises:
        StorageError: the shard is gone or damaged, or has no such row.
    """
    read = _from_parquet if shard.endswith(".parquet") else _from_tar
    try:
        with folder.open(shard) as file:
            return read(file, row)
    except FileNotFoundError:
        raise StorageError(f"{folder.path(shard)} is missing; the index names it") from None
    except (pa.ArrowException, tarfile.TarError, OSError, EOFError, ValueError, LookupError, TypeError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise StorageError(f"row {row} of {folder.path(shard)} cannot be read: {reason}") from None


def _from_parquet(file: IO[bytes], row: int) -> bytes:
    parquet = pq.ParquetFile(file)
    for group in range(parquet.num_row_groups):
        rows = parquet.metadata.row_group(group).num_rows
        if row < rows:
            clips = parquet.read_row_group(group, columns=["audio"], use_threads=False)["audio"]
            clip: bytes = clips[row].as_py()["bytes"]
            return clip
        row -= rows
    raise IndexError("the shard has fewer rows")


def _from_tar(file: IO[bytes], row: int) -> bytes:
    with tarfile.open(fileobj=file, mode="r:") as tar:
        clips = (member for member in tar if not member.name.endswith(".json"))
        member = next(islice(clips, row, None), None)
        content = None if member is None else tar.extractfile(member)
        if content is None:
            raise IndexError("the shard has fewer rows")
        return content.read()
