"""Outputs made without a model: real manifests, ledgers and shard files, with noise for speech."""

from __future__ import annotations

import hashlib
import io
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from jobs.audio.audiofile import Samples, encode
from jobs.config.config import config_from
from jobs.formats.formats import FORMATS
from jobs.formats.writers import Sound, stored_columns
from jobs.ledger.ledger import Ledger
from jobs.ledger.records import Attempt, CommitRecord, StoredFile, counts, ids_digest
from jobs.ledger.tables import INDEX_SCHEMA, failures_table
from jobs.manifest.manifest import Manifest
from jobs.manifest.rows import Failure, Row, job_rows
from jobs.measures.checks import RANGES, measure
from jobs.measures.opinion import OPINIONS
from jobs.measures.speaking import letter_rates
from jobs.plan import Plan, make_plan
from jobs.storage.folders import Folder
from jobs.storage.urls import absolute_url
from s3gen.constants import SAMPLE_RATE, SAMPLES_PER_TOKEN

SHARD_ROWS = 4
MAX_TOKENS = 12


def write_manifest(path: Path, count: int = 14, **changes: Any) -> str:
    """Rows ``u0`` .. with awkward ids; number 5 has a bad token, number 9 is null."""
    ids: list[str | None] = [f"u{n}" for n in range(count)]
    ids[1], ids[2] = "dir/../b.c", "é\n'\""
    tokens: list[list[int] | None] = [[(7 * n + k) % 6561 for k in range(2 + n % 3)] for n in range(count)]
    tokens[5], tokens[9] = [1, 9_999], None
    columns = {"id": ids, "voice_id": [f"v{n % 3}" for n in range(count)], "text": [f"text {n}" for n in range(count)]}
    table = pa.table({**columns, **changes}).append_column("tokens", pa.array(tokens, pa.list_(pa.int32())))
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, row_group_size=5)
    return str(path)


def job_of(output: str, manifest: str, **config: Any) -> dict[str, Any]:
    frozen = {"output": absolute_url(output), "manifest": manifest, "model": "m", "voices": "v", "seed": 3}
    frozen |= {"format": "parquet", "audio": "flac", "max_tokens": MAX_TOKENS, "workers": 1, "keep_inputs": False}
    frozen |= {"shard_rows": SHARD_ROWS}
    return {"config": frozen | config, "fingerprints": {"model": "f", "voices": "w"}, "versions": {}, "limit": None}


def plan_of(manifest: str, limit: int | None = None) -> Plan:
    return make_plan(Manifest.scan(manifest), SHARD_ROWS, limit)


def start(output: str, manifest: str, **config: Any) -> Ledger:
    return Ledger.start(Folder(output), job_of(output, manifest, **config), plan_of(manifest))


def prepare(
    ledger: Ledger,
    shard: int,
    wave: Callable[[Row], Samples] | None = None,
    trouble: Callable[[Row], str | None] = lambda row: None,
) -> tuple[Attempt, CommitRecord]:
    """Everything of one try at a shard but its commit.

    Args:
        trouble: the code that a row fails with, if it does.
    """
    config = ledger.job["config"]
    planned, manifest = ledger.plan.shard(shard), ledger.plan.manifest
    table = manifest.read(planned.spans)
    rows, failures = job_rows(table, config_from(config), ledger.plan.reseeded_by(planned))
    failures += [Failure(row.position, row.id, row.voice_id, code, "made up") for row in rows if (code := trouble(row))]
    rows = [row for row in rows if not trouble(row)]
    attempt = ledger.attempt(shard)
    began = time.time()
    with tempfile.TemporaryDirectory() as scratch:
        store = _Store(ledger.folder, Path(scratch) / "file")
        audio = cuts = index = failed = None
        if rows:
            waves = [(wave or _noise)(row) for row in rows]
            clips = [encode(wave, config["audio"]) for wave in waves]
            shard_format = FORMATS[config["format"]]
            columns = stored_columns(table, rows, keep_inputs=config["keep_inputs"])
            sound = Sound(suffix=config["audio"], rate=SAMPLE_RATE, samples=[len(wave) for wave in waves])
            shard_format.write(store.local, columns, iter(clips), sound)
            audio = store.keep(attempt.audio_name(shard_format.suffix, shard_format.prefix))
            if shard_format.write_cuts is not None:
                shard_format.write_cuts(store.local, columns, sound)
                cuts = store.keep(attempt.cuts_name)
            pq.write_table(_index(rows, waves, clips, audio.name, columns), store.local)
            index = store.keep(attempt.index_name)
        if failures:
            pq.write_table(failures_table(failures, table, ledger.plan.origins(planned)), store.local)
            failed = store.keep(attempt.failures_name)
    return attempt, CommitRecord(
        shard=shard,
        attempt=attempt.id,
        plan=ledger.digest_of(shard),
        ids=ids_digest(table["id"]),
        rows=planned.rows,
        rows_done=len(rows),
        rows_failed=len(failures),
        samples=sum(SAMPLES_PER_TOKEN * len(row.tokens) for row in rows),
        errors=counts(failure.error for failure in failures),
        problems={},
        positions=1_000,
        padding=100,
        worker="there:7",
        tries=1 + shard % 2,
        started_at=began,
        finished_at=began + 0.5,
        audio=audio,
        cuts=cuts,
        index=index,
        failures=failed,
    )


def bare_record(**values: Any) -> CommitRecord:
    """A record that names no files: of a shard of one row that was made, where no value says otherwise."""
    made: dict[str, Any] = {
        **{"shard": 0, "attempt": "a", "plan": "p", "ids": "i", "rows": 1, "rows_done": 1, "rows_failed": 0},
        **{"samples": 24_000, "errors": {}, "problems": {}, "positions": 50, "padding": 0},
        **{"worker": "there:7", "tries": 1, "started_at": 1e9, "finished_at": 1e9 + 1},
        **{"audio": None, "index": None, "failures": None},
    }
    return CommitRecord(**{**made, **values})


def make(ledger: Ledger, shard: int) -> bool:
    """One shard, committed."""
    return ledger.commit(*prepare(ledger, shard))


def make_all(ledger: Ledger) -> None:
    for shard in range(len(ledger.plan)):
        make(ledger, shard)


class _Store:
    def __init__(self, folder: Folder, local: Path) -> None:
        self._folder, self.local = folder, local

    def keep(self, name: str) -> StoredFile:
        data = self.local.read_bytes()
        self._folder.upload(name, self.local)
        return StoredFile(name=name, bytes=len(data), sha256=hashlib.sha256(data).hexdigest())


def _noise(row: Row) -> Samples:
    """Too quiet to click at its ends."""
    source = np.random.default_rng(row.seed)
    return (source.standard_normal(SAMPLES_PER_TOKEN * len(row.tokens)) / 100).astype(np.float32)


def _index(
    rows: Sequence[Row], waves: Sequence[Samples], clips: Sequence[bytes], shard: str, columns: pa.Table
) -> pa.Table:
    measures = [measure(wave) for wave in waves]
    samples = [SAMPLES_PER_TOKEN * len(row.tokens) for row in rows]
    return pa.table(
        {
            "id": [row.id for row in rows],
            "voice_id": [row.voice_id for row in rows],
            "shard": [shard] * len(rows),
            "row": range(len(rows)),
            "samples": samples,
            "duration": [count / SAMPLE_RATE for count in samples],
            "trimmed_start": [0] * len(rows),
            "trimmed_end": [0] * len(rows),
            "sha256": [hashlib.sha256(clip).hexdigest() for clip in clips],
            **{name: [getattr(each, name) for each in measures] for name in RANGES},
            "letters_per_second": letter_rates(columns, [count / SAMPLE_RATE for count in samples]),
            **{name: [None] * len(rows) for name in OPINIONS},
            "problems": [""] * len(rows),
            "cuts": [row.cuts for row in rows],
        },
        schema=INDEX_SCHEMA,
    )


def table_in(folder: Folder, name: str) -> pa.Table:
    """A table of an output."""
    return pq.read_table(io.BytesIO(folder.read(name)))
