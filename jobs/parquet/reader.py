"""Reading whole Parquet files from Python objects, without Arrow's threads.

`pyarrow.parquet.read_table` scans with a thread pool, even when told not to, and one of its threads may drop the last
reference to a Python buffer or file while the interpreter is shutting down: the process then aborts at its end, with
exit code 134 and all work done (apache/arrow issues 34314 and 39862). `ParquetFile` on one thread does not.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import IO

import pyarrow as pa
import pyarrow.parquet as pq


def read_parquet(source: IO[bytes] | bytes, columns: Sequence[str] | None = None) -> pa.Table:
    """A whole file, or some of its columns, as a table; dictionary and metadata as stored.

    Raises:
        pyarrow.ArrowException, OSError: not a Parquet file, or a damaged one.
    """
    file = pq.ParquetFile(pa.BufferReader(source) if isinstance(source, bytes) else source)
    return file.read(columns=None if columns is None else list(columns), use_threads=False)
