"""Shards in, committed shards out: a plain class, which knows nothing of Ray.

A shard's audio follows from its rows, its voices and the frame budget alone, whatever overlaps with what. `run` may be
called by several threads at a time: while one shard is computed, the next one's rows and voices are read, and the files
of the one before are written, uploaded and committed. Within a shard the device computes one batch while the one before
it is fetched, encoded and spooled to a local file. Memory holds some batches, however large the shard is.
"""

from __future__ import annotations

import contextlib
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa

from jobs.audio.audiofile import check_encoder
from jobs.config.config import JobConfig, config_from
from jobs.crew.isolation import Death, Range
from jobs.crew.pulse import Pulse
from jobs.engine.batch import Batch, Item, Trouble
from jobs.engine.engine import Engine
from jobs.engine.models import open_prepared, solver_of
from jobs.engine.padding import Padding, vocoded
from jobs.formats.writers import stored_columns
from jobs.ledger.ledger import Ledger
from jobs.ledger.records import ShardReport, ids_digest
from jobs.ledger.tables import failures_table
from jobs.manifest.manifest import Ints
from jobs.manifest.rows import Failure, Row, job_rows
from jobs.storage.folders import Folder
from jobs.storage.urls import Options
from jobs.voices.table import VoiceTable
from jobs.worker.encoding import Encoders, Intake
from jobs.worker.pieces import Pieces
from jobs.worker.publication import Made, Publication
from jobs.worker.spool import Spool
from s3gen import S3GenModel
from s3gen.ragged import plan_batches
from s3gen.voice import Voice


@dataclass(frozen=True, slots=True)
class Order:
    """What a worker is asked to make.

    Attributes:
        probe: only the rows at these positions of the shard, and nothing of it is published: does the worker live?
        guilty: positions that are not made, since workers died of them.
        max_frames: the frame budget, where it is another than the worker's own.
        tries: how often the shard was handed out, this time included; for the record.
        halvings: how often what is in memory together is to be halved, where that is no matter of frames.
    """

    shard: int
    probe: Range | None = None
    guilty: Mapping[int, Death] = field(default_factory=dict)
    max_frames: int | None = None
    tries: int = 1
    halvings: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class _Work:
    """A shard as it was read."""

    table: pa.Table
    origins: tuple[list[str], Ints]
    items: list[Item]
    failures: list[Failure]


class _Stages:
    """How long each stage of a shard took, in seconds; a stage begins where the one before it ended."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._began = time.monotonic()

    def ended(self, stage: str) -> None:
        now = time.monotonic()
        self.seconds[stage], self._began = now - self._began, now


class Worker:
    """Makes shards of one job, with one model and one voice table.

    Args:
        ledger: of the job.
        model: on its device.
        voices: the job's table.
        options: storage options.
        max_frames: the frame budget of a batch.
        encoders: threads for encoding.

    Attributes:
        tasks_at_once: calls of `run` that pay: each holds its rows and voices in memory.
        pulse: moves on with each batch, clip and file.
    """

    def __init__(
        self,
        ledger: Ledger,
        model: S3GenModel,
        voices: VoiceTable,
        *,
        max_frames: int,
        encoders: int = 1,
        options: Options | None = None,
    ) -> None:
        self._ledger, self._model, self._voices, self._options = ledger, model, voices, options
        self._max_frames = max_frames
        # A GPU may need no longer for a shard than storage: one is read, one computed, one published. Beside a CPU's
        # shards storage takes no time, and one that waits here might be made elsewhere.
        self.tasks_at_once = 3 if model.device.type == "cuda" else 2
        self._config: JobConfig = config_from(ledger.job["config"])
        self.pulse = Pulse()
        self._solver = solver_of(self._config)
        self._engine = Engine(model, solver=self._solver, start_fade=self._config.start_fade, pulse=self.pulse)
        self._encoders = Encoders(encoders, self._config)
        self._reading = threading.Lock()  # the voice table is one file and one cache

    @classmethod
    def open(cls, *, output: str, options: Options, max_frames: int, threads: int) -> Worker:
        """Opens the job in an output and loads its model, on the device that its configuration names.

        Args:
            max_frames: the frame budget of a batch.
            threads: of the model on a CPU, where sums depend on it in their last bits; on a GPU, for encoding.

        Raises:
            InputError: no such job, or one whose audio cannot be written here; or the model or the voices are not those
                that the job was begun with.
        """
        ledger = Ledger.open(Folder(output, options))
        config = config_from(ledger.job["config"])
        check_encoder(config.audio)
        model = open_prepared(config, options, threads)
        voices = VoiceTable.open(config.voices, options)
        ledger.check_unchanged({"fingerprints": fingerprints(model, voices)})
        # On a CPU the model has all of the share, of which encoding needs a thousandth.
        encoders = threads if model.device.type == "cuda" else 1
        worker = cls(ledger, model, voices, max_frames=max_frames, encoders=encoders, options=options)
        worker.warm_up()
        return worker

    def warm_up(self) -> None:
        """Does what the first batches would otherwise wait for, on the thread that will make them."""
        self._engine.call(lambda: self._model.warm_up(self._max_frames, solver=self._solver))

    def run(self, order: Order | int) -> ShardReport:
        """Makes and commits one shard, or what else the order says. When it raises, nothing of the shard is visible.

        Shards are computed one after the other, in the order in which they have been read.
        """
        order = Order(order) if isinstance(order, int) else order
        started_at, stages = time.time(), _Stages()
        work = self._read(order)
        stages.ended("read")
        with tempfile.TemporaryDirectory(prefix="s3gen-") as folder, tempfile.TemporaryFile() as file:
            spool = Spool(file)
            pieces = [piece for item in work.items for piece in item.pieces()]
            batches = _batches(pieces, order.max_frames or self._max_frames)
            failures = [*work.failures, *self._synthesize(batches, spool)]
            rows = [item.row for item in work.items if item.row.position in spool.clips]
            stages.ended("make")
            if order.probe is not None:
                return _probe_report(order, self._config, spool, failures)
            made = Made(
                rows=rows,
                ids=ids_digest(work.table["id"]),
                columns=stored_columns(work.table, rows, keep_inputs=self._config.keep_inputs),
                spool=spool,
                failed=failures_table(failures, work.table, work.origins),
                padding=self._padding(batches),
                tries=order.tries,
                started_at=started_at,
            )
            attempt = self._ledger.attempt(order.shard)
            record, counted = Publication(self._ledger, self._config, attempt, Path(folder), self.pulse).commit(made)
        stages.ended("publish")
        return ShardReport.of(record, counted=counted, seconds=stages.seconds)

    def _read(self, order: Order) -> _Work:
        planned, manifest = self._ledger.plan.shard(order.shard), self._ledger.plan.manifest
        first, end = order.probe or (0, planned.rows)
        with self._reading:
            table = manifest.read(planned.spans, self._options)
            self.pulse.beat()
            rows, failures = job_rows(table, self._config, self._ledger.plan.reseeded_by(planned))
            failures += [_guilty(row, order.guilty[row.position]) for row in rows if row.position in order.guilty]
            rows = [row for row in rows if first <= row.position < end and row.position not in order.guilty]
            voices = self._cut(self._voices.get_many(row.voice_id for row in rows))
            self.pulse.beat()
        unknown = [row for row in rows if row.voice_id not in voices]
        return _Work(
            table=table,
            origins=self._ledger.plan.origins(planned),
            items=[Item(row, voices[row.voice_id]) for row in rows if row.voice_id in voices],
            failures=[*failures, *map(_unknown_voice, unknown)],
        )

    def _cut(self, voices: Mapping[str, Voice]) -> Mapping[str, Voice]:
        seconds = self._config.engine.prompt_seconds
        if seconds is None:
            return voices
        return {voice_id: voice.cut(seconds) for voice_id, voice in voices.items()}

    def _padding(self, batches: Sequence[Batch]) -> Padding:
        """Of the vocoder. A batch that had to be halved counts as it was planned."""
        sums = Padding()
        for batch in batches:
            sums.add(vocoded([len(item.tokens) for item in batch], self._model.device.type))
        return sums

    def _synthesize(self, batches: Sequence[Batch], spool: Spool) -> list[Failure]:
        """Fills the spool; returns the rows that could not be made."""
        failures: list[Failure] = []
        with tempfile.TemporaryFile() as file:
            intake = Intake(self._encoders, Pieces(file))
            order = self._engine.make(batches, intake.put)
            order.add_done_callback(lambda _: intake.end())
            with contextlib.closing(intake.clips()) as clips:
                for item, clip in clips:
                    if isinstance(clip, Trouble):
                        failures.append(clip.of(item.row))
                    else:
                        spool.keep(item.row.position, clip)
                    self.pulse.beat()
            order.result()
        return failures


def fingerprints(model: S3GenModel, voices: VoiceTable) -> dict[str, str]:
    """What a job is bound to, beside its configuration and manifest."""
    return {"model": model.fingerprint(), **voices.fingerprints}


def _batches(items: Sequence[Item], max_frames: int) -> list[Batch]:
    plans = plan_batches([item.frames for item in items], max_frames)
    return [[items[number] for number in plan] for plan in plans]


def _probe_report(order: Order, config: JobConfig, spool: Spool, failures: Sequence[Failure]) -> ShardReport:
    clips = spool.clips.values()
    return ShardReport.of_probe(
        order.shard,
        samples=[config.wave.made(clip.samples) for clip in clips],
        errors=[failure.error for failure in failures],
        problems=[name for clip in clips for name in clip.problems],
        tries=order.tries,
    )


def _guilty(row: Row, death: Death) -> Failure:
    return Failure(row.position, row.id, row.voice_id, death.code, death.message)


def _unknown_voice(row: Row) -> Failure:
    message = f"the voice table has no voice {row.voice_id[:200]!r}"
    return Failure(row.position, row.id, row.voice_id, "unknown_voice", message)
