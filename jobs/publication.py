"""The files of one try at a shard: written here, uploaded, committed."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from jobs.checks import RANGES
from jobs.config import JobConfig
from jobs.errors import StorageUnknown
from jobs.ledger import Ledger
from jobs.manifest import Row
from jobs.pulse import Pulse
from jobs.records import Attempt, CommitRecord, StoredFile
from jobs.spool import Clip, Spool
from jobs.tables import INDEX_SCHEMA
from jobs.writers import FORMATS
from s3gen.constants import SAMPLE_RATE


@dataclass(frozen=True, kw_only=True, slots=True)
class Made:
    """What became of a shard's rows.

    Attributes:
        rows: those that were made, in manifest order.
        ids: digest of the ids of all rows, see `jobs.records.ids_digest`.
        columns: of those that were made, beside the audio.
        spool: their clips.
        failed: the failures table of the others.
        started_at: unix time.
    """

    rows: Sequence[Row]
    ids: str
    columns: pa.Table
    spool: Spool
    failed: pa.Table
    started_at: float


@dataclass(frozen=True, slots=True)
class Publication:
    """One try at publishing a shard.

    Args:
        scratch: an empty local folder, as large as the shard.
        pulse: moves on with each file.
    """

    ledger: Ledger
    config: JobConfig
    attempt: Attempt
    scratch: Path
    pulse: Pulse

    def commit(self, made: Made) -> tuple[CommitRecord, bool]:
        """Writes the files locally, uploads them, and commits them, in this order.

        After a failure that leaves no doubt the files of this try are deleted; otherwise they stay until the job ends,
        since a record that names them may have landed.

        Returns:
            The record, and whether it counts.
        """
        clips = [made.spool.clips[row.position] for row in made.rows]
        audio = index = failures = None
        if made.rows:
            audio = self._write_audio(made)
            index = self._write_table(self.attempt.index_name, _index(made.rows, clips, audio.name))
        if len(made.failed):
            failures = self._write_table(self.attempt.failures_name, made.failed)
        record = CommitRecord(
            shard=self.attempt.shard,
            attempt=self.attempt.id,
            plan=self.ledger.plan.digest,
            ids=made.ids,
            rows=len(made.rows) + len(made.failed),
            rows_done=len(made.rows),
            rows_failed=len(made.failed),
            samples=sum(clip.samples for clip in clips),
            started_at=made.started_at,
            finished_at=time.time(),
            audio=audio,
            index=index,
            failures=failures,
        )
        return record, self._publish(record)

    def _publish(self, record: CommitRecord) -> bool:
        try:
            for file in record.files():
                self.ledger.folder.upload(file.name, self._local(file.name))
                self.pulse.beat()
        except StorageUnknown:
            raise
        except Exception:
            self.ledger.discard(self.attempt, record)
            raise
        # Whatever this raises, nothing is deleted: a record that landed against all that is known of it would name
        # files that are gone. Those of a try that did not count go at the end.
        return self.ledger.commit(self.attempt, record)

    def _write_audio(self, made: Made) -> StoredFile:
        shard_format = FORMATS[self.config.format]
        name = self.attempt.audio_name(shard_format.suffix)
        clips = made.spool.read([row.position for row in made.rows])
        shard_format.write(self._local(name), made.columns, clips, self.config.audio)
        return self._stored(name)

    def _write_table(self, name: str, table: pa.Table) -> StoredFile:
        pq.write_table(table, self._local(name), compression="zstd")
        return self._stored(name)

    def _local(self, name: str) -> Path:
        return self.scratch / name.replace("/", "-")

    def _stored(self, name: str) -> StoredFile:
        path = self._local(name)
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        return StoredFile(name=name, bytes=path.stat().st_size, sha256=digest)


def _index(rows: Sequence[Row], clips: Sequence[Clip], shard: str) -> pa.Table:
    return pa.table(
        {
            "id": [row.id for row in rows],
            "voice_id": [row.voice_id for row in rows],
            "shard": [shard] * len(rows),
            "row": range(len(rows)),
            "samples": [clip.samples for clip in clips],
            "duration": [clip.samples / SAMPLE_RATE for clip in clips],
            "sha256": [clip.sha256 for clip in clips],
            **{name: [getattr(clip.measures, name) for clip in clips] for name in RANGES},
            "problems": [",".join(clip.problems) for clip in clips],
        },
        schema=INDEX_SCHEMA,
    )
