"""One shard in, one committed shard out: a plain class, which knows nothing of Ray.

The audio of a shard follows from its rows, its voices and the frame budget alone. Clips are spooled to a local file as
they are made, longest first, and written in manifest order: memory holds one batch, however large the shard is.
"""

from __future__ import annotations

import hashlib
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from jobs.audiofile import Samples, encode
from jobs.config import JobConfig, config_from
from jobs.errors import InputError, StorageUnknown
from jobs.ledger import Ledger
from jobs.manifest import Failure, Row, check_rows
from jobs.models import open_model
from jobs.records import Attempt, CommitRecord, StoredFile
from jobs.schedule import BrokenWorker
from jobs.storage import Folder, Options
from jobs.tables import INDEX_SCHEMA, failures_table
from jobs.voices import VoiceTable
from jobs.writers import FORMATS, stored_columns
from s3gen import S3GenModel
from s3gen.constants import FRAMES_PER_TOKEN, SAMPLE_RATE, SAMPLES_PER_TOKEN
from s3gen.ragged import plan_batches
from s3gen.voice import Voice

# `batch.max_frames: auto`: rows x longest row, in mel frames of 20 ms, prompts included.
AUTO_FRAMES = {"cpu": 8_192, "cuda": 32_768}


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardReport:
    """What became of a shard."""

    shard: int
    rows_done: int
    rows_failed: int
    samples: int
    counted: bool  # False: another try had committed it before, and this one's files are gone


@dataclass(frozen=True, slots=True)
class _Item:
    """A row with its voice."""

    row: Row
    voice: Voice

    @property
    def frames(self) -> int:
        """What it takes of a batch's budget."""
        return FRAMES_PER_TOKEN * (len(self.voice.prompt_token) + len(self.row.tokens))


@dataclass(frozen=True, slots=True)
class _Trouble:
    """Why a batch could not be made. No exception is kept: its traceback would keep the batch's tensors."""

    error: str
    message: str


@dataclass(frozen=True, slots=True)
class _Clip:
    """A made row: where its bytes lie in the spool."""

    samples: int
    offset: int
    size: int
    sha256: str


@dataclass(slots=True)
class _Made:
    """What has been made of a shard so far, by position in its table."""

    spool: IO[bytes]
    clips: dict[int, _Clip] = field(default_factory=dict)
    failures: list[Failure] = field(default_factory=list)

    def keep(self, position: int, samples: int, data: bytes) -> None:
        digest = hashlib.sha256(data).hexdigest()
        self.clips[position] = _Clip(samples, self.spool.tell(), len(data), digest)
        self.spool.write(data)

    def read(self, positions: Sequence[int]) -> Iterator[bytes]:
        for position in positions:
            clip = self.clips[position]
            self.spool.seek(clip.offset)
            yield self.spool.read(clip.size)


class Worker:
    """Makes shards of one job, with one model and one voice table.

    Args:
        ledger: of the job.
        model: on its device.
        voices: the job's table.
        options: storage options.
        max_frames: the frame budget of a batch.
    """

    def __init__(
        self, ledger: Ledger, model: S3GenModel, voices: VoiceTable, *, max_frames: int, options: Options | None = None
    ) -> None:
        self._ledger, self._model, self._voices = ledger, model, voices
        self._options = options
        self._max_frames = max_frames
        self._config: JobConfig = config_from(ledger.job["config"])

    @classmethod
    def open(
        cls,
        *,
        output: str,
        options: Options,
        max_frames: int | Literal["auto"],
        threads: int,
    ) -> Worker:
        """Opens the job in an output and loads its model, on the device that its configuration names.

        Args:
            threads: of the model on a CPU. Sums depend on it in their last bits.

        Raises:
            InputError: no such job; or the model or the voices are not those that the job was begun with.
        """
        torch.set_num_threads(threads)
        torch.backends.cudnn.benchmark = False
        torch.backends.cudnn.deterministic = True
        ledger = Ledger.open(Folder(output, options))
        config = config_from(ledger.job["config"])
        device = device_of(config)
        model = open_model(config.model, config.model_file, device, options)
        voices = VoiceTable.open(config.voices, options)
        ledger.check_unchanged({"fingerprints": fingerprints(model, voices)})
        frames = AUTO_FRAMES[device] if max_frames == "auto" else max_frames
        return cls(ledger, model, voices, max_frames=frames, options=options)

    def run(self, shard: int) -> ShardReport:
        """Makes and commits one shard. When it raises, nothing of the shard is visible."""
        started_at = time.time()
        planned = self._ledger.plan.shard(shard)
        manifest = self._ledger.plan.manifest
        table = manifest.read(planned.spans, self._options)
        rows, failures = check_rows(table, job_seed=self._config.seed, max_tokens=self._config.max_tokens)
        with tempfile.TemporaryDirectory(prefix="s3gen-") as folder, tempfile.TemporaryFile() as spool:
            made = _Made(spool, failures=failures)
            self._synthesize(rows, made)
            failed = failures_table(made.failures, table, manifest.origins(planned.spans))
            rows = [row for row in rows if row.position in made.clips]
            columns = stored_columns(table, rows, keep_inputs=self._config.keep_inputs)
            publication = _Publication(self._ledger, self._ledger.attempt(shard), Path(folder))
            return publication.commit(self._config, rows, columns, made, failed, started_at)

    def _synthesize(self, rows: Sequence[Row], made: _Made) -> None:
        items = self._with_voices(rows, made)
        for batch in plan_batches([item.frames for item in items], self._max_frames) if items else ():
            for item, samples in self._make([items[number] for number in batch], made):
                trouble = _fault(item.row, samples)
                if trouble is None:
                    made.keep(item.row.position, len(samples), encode(samples, self._config.audio))
                else:
                    made.failures.append(_failure(item.row, trouble))

    def _with_voices(self, rows: Sequence[Row], made: _Made) -> list[_Item]:
        voices = self._cut(self._voices.get_many(row.voice_id for row in rows))
        for row in rows:
            if row.voice_id not in voices:
                trouble = _Trouble("unknown_voice", f"the voice table has no voice {row.voice_id[:200]!r}")
                made.failures.append(_failure(row, trouble))
        return [_Item(row, voices[row.voice_id]) for row in rows if row.voice_id in voices]

    def _cut(self, voices: Mapping[str, Voice]) -> Mapping[str, Voice]:
        seconds = self._config.engine.prompt_seconds
        if seconds is None:
            return voices
        return {voice_id: voice.cut(seconds) for voice_id, voice in voices.items()}

    def _make(self, batch: list[_Item], made: _Made) -> Iterator[tuple[_Item, Samples]]:
        """The waves of a batch; where it fails as a whole, of its halves, down to the rows that are guilty."""
        pending = [batch]
        while pending:
            batch = pending.pop()
            result = self._try(batch)
            if isinstance(result, list):
                yield from zip(batch, result, strict=True)
                continue
            if self._model.device.type == "cuda":
                torch.cuda.empty_cache()
            if len(batch) == 1:
                made.failures.append(_failure(batch[0].row, result))
            else:
                middle = (len(batch) + 1) // 2
                pending += [batch[middle:], batch[:middle]]

    def _try(self, batch: Sequence[_Item]) -> list[Samples] | _Trouble:
        try:
            waves = self._model.synthesize(
                [torch.tensor(item.row.tokens) for item in batch],
                [item.voice for item in batch],
                [item.row.seed for item in batch],
                n_cfm_timesteps=self._config.engine.n_cfm_timesteps,
                start_fade=self._config.start_fade,
            )
            return [wave.numpy(force=True) for wave in waves]
        except Exception as error:
            return _trouble(error)


@dataclass(frozen=True, slots=True)
class _Publication:
    """The files of one try at a shard, and its commit."""

    ledger: Ledger
    attempt: Attempt
    scratch: Path

    def commit(
        self,
        config: JobConfig,
        rows: Sequence[Row],
        columns: pa.Table,
        made: _Made,
        failed: pa.Table,
        started_at: float,
    ) -> ShardReport:
        """Writes the files locally, uploads them, and commits them, in this order.

        After a failure that leaves no doubt the files of this try are deleted; otherwise they stay until the job ends,
        since a record that names them may have landed.
        """
        clips = [made.clips[row.position] for row in rows]
        audio = index = failures = None
        if rows:
            audio = self._write_audio(config, columns, made.read([row.position for row in rows]))
            index = self._write_table(self.attempt.index_name, _index(rows, clips, audio.name))
        if len(failed):
            failures = self._write_table(self.attempt.failures_name, failed)
        record = CommitRecord(
            shard=self.attempt.shard,
            attempt=self.attempt.id,
            plan=self.ledger.plan.digest,
            rows=len(rows) + len(failed),
            rows_done=len(rows),
            rows_failed=len(failed),
            samples=sum(clip.samples for clip in clips),
            started_at=started_at,
            finished_at=time.time(),
            audio=audio,
            index=index,
            failures=failures,
        )
        counted = self._publish(record)
        return ShardReport(
            shard=record.shard,
            rows_done=record.rows_done,
            rows_failed=record.rows_failed,
            samples=record.samples,
            counted=counted,
        )

    def _publish(self, record: CommitRecord) -> bool:
        try:
            for file in record.files():
                self.ledger.folder.upload(file.name, self._local(file.name))
            return self.ledger.commit(self.attempt, record)
        except StorageUnknown:
            raise
        except Exception:
            self.ledger.discard(self.attempt, record)
            raise

    def _write_audio(self, config: JobConfig, columns: pa.Table, clips: Iterator[bytes]) -> StoredFile:
        shard_format = FORMATS[config.format]
        name = self.attempt.audio_name(shard_format.suffix)
        shard_format.write(self._local(name), columns, clips, config.audio)
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


def device_of(config: JobConfig) -> Literal["cpu", "cuda"]:
    """The device of this process. InputError when the configuration names one that it has not."""
    has_gpu = torch.cuda.is_available()
    if config.engine.device == "cuda" and not has_gpu:
        raise InputError("engine.device: cuda is asked for, and torch finds no GPU; give cpu or auto")
    return "cuda" if has_gpu and config.engine.device != "cpu" else "cpu"


def fingerprints(model: S3GenModel, voices: VoiceTable) -> dict[str, str]:
    """What a job is bound to, beside its configuration and manifest."""
    return {"model": model.fingerprint(), "voices": voices.digest}


def _index(rows: Sequence[Row], clips: Sequence[_Clip], shard: str) -> pa.Table:
    return pa.table(
        {
            "id": [row.id for row in rows],
            "voice_id": [row.voice_id for row in rows],
            "shard": [shard] * len(rows),
            "row": range(len(rows)),
            "samples": [clip.samples for clip in clips],
            "duration": [clip.samples / SAMPLE_RATE for clip in clips],
            "sha256": [clip.sha256 for clip in clips],
        },
        schema=INDEX_SCHEMA,
    )


def _failure(row: Row, trouble: _Trouble) -> Failure:
    return Failure(row.position, row.id, row.voice_id, trouble.error, trouble.message)


def _fault(row: Row, samples: Samples) -> _Trouble | None:
    """What makes a wave unfit whatever the configuration says."""
    expected = SAMPLES_PER_TOKEN * len(row.tokens)
    if len(samples) != expected:
        return _Trouble("wrong_length", f"{len(samples)} samples for {len(row.tokens)} tokens, not {expected}")
    bad = np.flatnonzero(~np.isfinite(samples))
    if len(bad):
        return _Trouble("not_finite", f"{len(bad)} samples are not finite, the first at {bad[0] / SAMPLE_RATE:.3f} s")
    return None


def _trouble(error: Exception) -> _Trouble:
    """What an exception of the model means for its batch.

    Raises:
        BrokenWorker: every later call on this device would fail too, so the batch is not to blame.
    """
    text = " ".join(str(error).split())[:500]
    # On a CPU torch has no type of its own for it.
    starved = isinstance(error, MemoryError | torch.OutOfMemoryError) or "DefaultCPUAllocator" in text
    if starved or "CUDA error: out of memory" in text or "_ALLOC_FAILED" in text:
        return _Trouble("out_of_memory", f"alone in its batch it needs more memory than there is: {text}")
    if isinstance(error, torch.AcceleratorError) or "CUDA error" in text:
        raise BrokenWorker(f"{type(error).__name__}: {text}") from error
    return _Trouble("synthesis_error", f"{type(error).__name__}: {text}")
