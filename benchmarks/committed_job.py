"""A job that is committed without having been made: real records and parts of the index, made-up rows."""

from __future__ import annotations

import hashlib
import io
import tempfile
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.made_up import made_up_job, made_up_record
from benchmarks.simulation import MemoryStore
from jobs.ledger.ledger import Ledger
from jobs.ledger.records import StoredFile, ids_digest
from jobs.ledger.tables import INDEX_SCHEMA
from jobs.manifest.manifest import Manifest
from jobs.plan import make_plan
from jobs.storage.folders import Folder


def committed_job(store: MemoryStore, shards: int, rows: int) -> Ledger:
    """A job whose shards are all committed, with parts of the index; every ten thousandth id is there twice."""
    with tempfile.TemporaryDirectory(prefix="benchmark-") as folder:
        path = Path(folder) / "manifest.parquet"
        columns = {"id": [""] * rows, "voice_id": [""] * rows, "tokens": pa.array([[0]] * rows, pa.list_(pa.int32()))}
        with pq.ParquetWriter(path, pa.table(columns).schema) as writer:
            for _ in range(shards):
                writer.write_table(pa.table(columns))
        plan = make_plan(Manifest.scan(str(path)), rows)
    ledger = Ledger.start(Folder.of(store, "simulated://end"), made_up_job(), plan)
    for shard in range(shards):
        attempt = ledger.attempt(shard)
        ids = [_row_id(shard * rows + row) for row in range(rows)]
        file = _stored(ledger.folder, attempt.index_name, _index_part(ids, attempt.audio_name("parquet")))
        seconds = (float(shard), shard + 60.0)
        record = made_up_record(
            plan, shard, attempt.id, ids=ids_digest(pa.array(ids)), seconds=seconds, audio=None, index=file
        )
        ledger.commit(attempt, record)
    return ledger


def _row_id(number: int) -> str:
    return f"utterance-{number if number % 10_000 else 0:012d}"


def _index_part(ids: list[str], shard: str) -> bytes:
    values: dict[str, Callable[[pa.DataType], pa.Array]] = {
        "id": lambda kind: pa.array(ids, kind),
        "cuts": lambda kind: pa.array([[]] * len(ids), kind),
        "shard": lambda kind: pa.array([shard] * len(ids), kind),
        "row": lambda kind: pa.array(range(len(ids)), kind),
        "sha256": lambda kind: pa.array([hashlib.sha256(text.encode()).hexdigest() for text in ids], kind),
    }
    filled = [
        values[field.name](field.type) if field.name in values else pa.repeat(pa.scalar(0).cast(field.type), len(ids))
        for field in INDEX_SCHEMA
    ]
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_arrays(filled, schema=INDEX_SCHEMA), buffer, compression="zstd")
    return buffer.getvalue()


def _stored(folder: Folder, name: str, data: bytes) -> StoredFile:
    folder.put(name, data)
    return StoredFile(name=name, bytes=len(data), sha256=hashlib.sha256(data).hexdigest())
