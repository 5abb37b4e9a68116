"""What one try made of a shard: its audio, its parts of the tables and its record."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from jobs.config.config import JobConfig
from jobs.crew.pulse import Pulse
from jobs.engine.padding import Padding
from jobs.formats.formats import FORMATS
from jobs.formats.writers import Sound
from jobs.ledger.ledger import Ledger
from jobs.ledger.records import Attempt, CommitRecord, StoredFile, counts, worker_name
from jobs.ledger.tables import INDEX_SCHEMA
from jobs.manifest.rows import Row
from jobs.measures.checks import RANGES
from jobs.measures.opinion import OPINIONS
from jobs.measures.speaking import letter_rates
from jobs.worker.spool import Clip, Spool
from jobs.worker.uploads import Upload


@dataclass(frozen=True, kw_only=True, slots=True)
class Made:
    """What became of a shard's rows.

    Attributes:
        rows: those that were made, in manifest order.
        ids: digest of the ids of all rows, see `jobs.ledger.records.ids_digest`.
        columns: of those that were made, beside the audio.
        spool: their clips.
        failed: the failures table of the others.
        padding: of the vocoder, over all batches.
        tries: how often the shard was handed out.
        started_at: unix time.
    """

    rows: Sequence[Row]
    ids: str
    columns: pa.Table
    spool: Spool
    failed: pa.Table
    padding: Padding
    tries: int
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
        """Writes the files locally, uploads them, and commits them, in this order. Raises as `Upload.publish`.

        Returns:
            The record, and whether it counts.
        """
        rate = self.config.wave.sample_rate
        upload = Upload(self.ledger, self.attempt, self.scratch, self.pulse)
        clips = [made.spool.clips[row.position] for row in made.rows]
        audio = cuts = index = failures = None
        if made.rows:
            audio, cuts = self._write_audio(made, upload)
            index = upload.write_table(self.attempt.index_name, _index(made, clips, audio.name, rate))
        if len(made.failed):
            failures = upload.write_table(self.attempt.failures_name, made.failed)
        record = CommitRecord(
            shard=self.attempt.shard,
            attempt=self.attempt.id,
            plan=self.ledger.digest_of(self.attempt.shard),
            ids=made.ids,
            rows=len(made.rows) + len(made.failed),
            rows_done=len(made.rows),
            rows_failed=len(made.failed),
            samples=sum(self.config.wave.made(clip.samples) for clip in clips),
            errors=counts(made.failed["error"].to_pylist()),
            problems=counts(name for clip in clips for name in clip.problems),
            positions=made.padding.positions,
            padding=made.padding.padding,
            worker=worker_name(),
            tries=made.tries,
            started_at=made.started_at,
            finished_at=time.time(),
            audio=audio,
            cuts=cuts,
            index=index,
            failures=failures,
        )
        return record, upload.publish(record)

    def _write_audio(self, made: Made, upload: Upload) -> tuple[StoredFile, StoredFile | None]:
        shard_format = FORMATS[self.config.format]
        positions = [row.position for row in made.rows]
        samples = [made.spool.clips[position].samples for position in positions]
        sound = Sound(suffix=self.config.audio, rate=self.config.wave.sample_rate, samples=samples)
        name = self.attempt.audio_name(shard_format.suffix, shard_format.prefix)
        shard_format.write(upload.local(name), made.columns, made.spool.read(positions), sound)
        if shard_format.write_cuts is None:
            return upload.stored(name), None
        shard_format.write_cuts(upload.local(self.attempt.cuts_name), made.columns, sound)
        return upload.stored(name), upload.stored(self.attempt.cuts_name)


def _index(made: Made, clips: Sequence[Clip], shard: str, rate: int) -> pa.Table:
    rows, seconds = made.rows, [clip.samples / rate for clip in clips]
    return pa.table(
        {
            "id": [row.id for row in rows],
            "voice_id": [row.voice_id for row in rows],
            "shard": [shard] * len(rows),
            "row": range(len(rows)),
            "samples": [clip.samples for clip in clips],
            "duration": seconds,
            "trimmed_start": [clip.trimmed_start for clip in clips],
            "trimmed_end": [clip.trimmed_end for clip in clips],
            "sha256": [clip.sha256 for clip in clips],
            **{name: [getattr(clip.measures, name) for clip in clips] for name in RANGES},
            "letters_per_second": letter_rates(made.columns, seconds),
            **{name: [clip.opinion and getattr(clip.opinion, name) for clip in clips] for name in OPINIONS},
            "problems": [",".join(clip.problems) for clip in clips],
            "cuts": [row.cuts for row in rows],
        },
        schema=INDEX_SCHEMA,
    )
