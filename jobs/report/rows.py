"""The rows that a job has made, as pandas frames, some ten thousand at a time.

Of a finished job they come from the index. Of one that is under way they come from the parts that its shards left: of
all of them, or of as many as the caller picks.

Their ``samples`` are those that a row has at the model's rate, at whichever rate it is stored; their ``joints`` count
where pieces were joined to make them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from jobs.errors import StorageError
from jobs.ledger.layout import INDEX
from jobs.ledger.parts import read_shards
from jobs.ledger.records import CommitRecord
from jobs.measures.checks import RANGES
from jobs.report.quality import COLUMNS as QUALITIES
from jobs.storage.folders import Folder
from s3gen.constants import SAMPLE_RATE

FRAME_ROWS = 65_536
MEASURES = tuple(dict.fromkeys((*RANGES, *QUALITIES)))
COLUMNS = ("id", "voice_id", "shard", "row", "samples", "joints", *MEASURES, "problems")
STORED = {"samples": "duration", "joints": "cuts"}  # what some of them follow from


def index_frames(folder: Folder, columns: Sequence[str] = COLUMNS) -> Iterator[pd.DataFrame]:
    """All rows of a finished job; texts that repeat are categories.

    Raises:
        StorageError: the index is gone or damaged.
    """
    for name in folder.list(f"{INDEX}/") or [INDEX]:  # a large one is a folder of parts
        try:
            with folder.open(name) as file:
                parquet = pq.ParquetFile(file, read_dictionary=["voice_id", "shard", "problems"])
                for batch in parquet.iter_batches(batch_size=FRAME_ROWS, columns=_stored(columns), use_threads=False):
                    yield _frame(batch)
        except FileNotFoundError:
            raise StorageError(f"{folder.path(name)} is missing; s3gen verify tells what else is") from None
        except (pa.ArrowException, OSError) as error:
            raise StorageError(f"{folder.path(name)} cannot be read: {error}") from None


def shard_frames(folder: Folder, records: Iterable[CommitRecord]) -> Iterator[pd.DataFrame]:
    """The rows of some shards.

    Raises:
        StorageError: a part is gone or damaged.
    """
    waiting: list[pa.Table] = []
    rows = 0
    for table in read_shards(folder, (record.index for record in records)):
        waiting.append(table.select(_stored(COLUMNS)))
        rows += table.num_rows
        if rows >= FRAME_ROWS:
            yield _frame(pa.concat_tables(waiting))
            waiting, rows = [], 0
    if waiting:
        yield _frame(pa.concat_tables(waiting))


def _stored(columns: Sequence[str]) -> list[str]:
    return [STORED.get(name, name) for name in columns]


def _frame(rows: pa.Table | pa.RecordBatch) -> pd.DataFrame:
    samples = np.rint(rows["duration"].to_numpy() * SAMPLE_RATE).astype(np.int64)
    joints = pc.list_value_length(rows["cuts"]).to_numpy()
    return rows.drop_columns(list(STORED.values())).to_pandas().assign(samples=samples, joints=joints)
