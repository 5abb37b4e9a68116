"""The rows that could not be made, by reason."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from jobs.errors import StorageError
from jobs.ledger.layout import FAILURES
from jobs.ledger.ledger import Ledger
from jobs.ledger.parts import read_shards
from jobs.ledger.records import CommitRecord, text_bytes
from jobs.ledger.tables import remaining
from jobs.storage.folders import Folder

EXAMPLES = 3  # of each reason
BATCH_ROWS = 8_192
COLUMNS = ("id", "voice_id", "error", "message")

Example = tuple[str, str, str]  # id, voice id, message


class Failures:
    """Failed rows, counted and with the first of each reason.

    Attributes:
        rows: by code.
        examples: by code.
    """

    def __init__(self) -> None:
        self.rows: Counter[str] = Counter()
        self.examples: dict[str, list[Example]] = {}

    def add(self, table: pa.Table) -> None:
        """Takes rows of a failures table in."""
        errors = table["error"].to_pandas()
        self.rows.update({str(code): int(rows) for code, rows in errors.value_counts().items()})
        first: pd.Series = errors.groupby(errors).head(EXAMPLES)
        for at, code in first.items():
            examples = self.examples.setdefault(code, [])
            if len(examples) < EXAMPLES:
                row = table.slice(int(str(at)), 1)
                examples.append((_text(row["id"]), _text(row["voice_id"]), _text(row["message"])))

    def by_rows(self) -> Sequence[tuple[str, int]]:
        """Codes and their rows, most first."""
        return sorted(self.rows.items(), key=lambda item: (-item[1], item[0]))


def table_batches(folder: Folder, columns: Sequence[str] = COLUMNS) -> Iterator[pa.Table]:
    """The failures of a finished job.

    Raises:
        StorageError: the table is gone or damaged.
    """
    try:
        with folder.open(FAILURES) as file:
            parquet = pq.ParquetFile(file)
            for batch in parquet.iter_batches(batch_size=BATCH_ROWS, columns=list(columns), use_threads=False):
                yield pa.Table.from_batches([batch])
    except FileNotFoundError:
        raise StorageError(f"{folder.path(FAILURES)} is missing; s3gen verify tells what else is") from None
    except (pa.ArrowException, OSError) as error:
        raise StorageError(f"{folder.path(FAILURES)} cannot be read: {error}") from None


def shard_tables(ledger: Ledger, records: Sequence[CommitRecord]) -> Iterator[pa.Table]:
    """The failures of some shards, without those that are tried again."""
    shards = [record.shard for record in records if record.failures]
    tables = read_shards(ledger.folder, (record.failures for record in records))
    for shard, table in zip(shards, tables, strict=True):
        yield remaining(table, shard, ledger.plan)


def _text(column: pa.ChunkedArray) -> str:
    """The one value of a column: null and what is not UTF-8, too."""
    value = text_bytes(column)[0]
    return "(none)" if value is None else value.decode(errors="backslashreplace")
