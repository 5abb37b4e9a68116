"""An output with everything that a report shows: voices, suspects, failures, retries, a pause; buzzes for speech."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from jobs.ledger.ledger import Ledger
from jobs.ledger.records import CommitRecord, StoredFile
from jobs.manifest.rows import Row
from s3gen.constants import SAMPLES_PER_TOKEN
from tests.conftest import speech_like
from tests.jobs import made_job

ROWS = 40
BEGAN = 1.79e9  # unix time
SCRIPT = "<script>document.title='taken'</script>"
IMAGE = '"><img src=x onerror=alert(1)>'
HOSTILE = (SCRIPT, "a\u202egnp.exe", "long " * 300, "nul\x00\x1b[31m", "")
TEMPLATE = "{{ 7 * 7 }}"
SUSPECT = {"problems": "clipping,click_end", "clipped": 0.034, "click_end": 0.61}


def write_manifest(path: Path) -> str:
    """Ten shards of four rows, in five voices; the first ids are hostile, and rows 9, 17, 18 fail."""
    ids = [*HOSTILE, *(f"chapter-{n // 10}/{n:03d}" for n in range(len(HOSTILE), ROWS))]
    voices = [("anna", "bert", SCRIPT, "de/carl.2", "日本の声")[(n + n // 7) % 5] for n in range(ROWS)]
    tokens: list[list[int] | None] = [[7] * (12 + 5 * n % 31) for n in range(ROWS)]
    tokens[9], tokens[17], tokens[18] = [9_999], None, None
    ids[17], ids[18] = TEMPLATE, IMAGE
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.table({"id": ids, "voice_id": voices, "tokens": pa.array(tokens, pa.list_(pa.int32()))})
    pq.write_table(table, path)
    return str(path)


def start(output: str, manifest: str, **config: Any) -> Ledger:
    return made_job.start(output, manifest, **{"max_tokens": 100, "model": "made/up", **config})


def make(ledger: Ledger, shard: int) -> None:
    """Commits a shard: by one of three workers, in ten seconds each; shard 5 at the third try, after an hour's pause.

    The first row of shard 3 is suspect.
    """
    attempt, record = made_job.prepare(ledger, shard, _buzz)
    began = BEGAN + 10 * (shard // 3) + (3_600 if shard > 5 else 0)
    if shard == 3:
        record = with_measures(ledger, record, 0, SUSPECT)
    times = {"started_at": began, "finished_at": began + 10 - shard % 3}
    tries = 3 if shard == 5 else 1
    ledger.commit(attempt, replace(record, worker=f"node-{shard % 3}:{41 + shard % 3}", tries=tries, **times))


def make_all(ledger: Ledger) -> None:
    for shard in range(len(ledger.plan)):
        make(ledger, shard)


def with_measures(ledger: Ledger, record: CommitRecord, row: int, values: Mapping[str, Any]) -> CommitRecord:
    """The record with other measures of one of its rows in the index."""
    assert record.index is not None
    rows = pq.read_table(io.BytesIO(ledger.folder.read(record.index.name)))
    entries = rows.to_pylist()
    entries[row].update(values)
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(entries, rows.schema), buffer)
    data = buffer.getvalue()
    ledger.folder.put(record.index.name, data)
    file = StoredFile(name=record.index.name, bytes=len(data), sha256=hashlib.sha256(data).hexdigest())
    return replace(record, index=file, problems=dict.fromkeys(str(values["problems"]).split(","), 1))


def _buzz(row: Row) -> np.ndarray:
    seconds = SAMPLES_PER_TOKEN * len(row.tokens) / 24_000
    wave = speech_like(seconds + 0.01, 24_000, seed=row.seed % 100, pitch=90.0 + row.seed % 150).numpy()
    return wave[: SAMPLES_PER_TOKEN * len(row.tokens)] / (1 + row.seed % 5)
