"""Some shards of a job that is not begun, read and batched as a worker would: what all of them will be like."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator

import numpy as np
import pyarrow as pa

from jobs.config.config import JobConfig
from jobs.engine.batch import Batch, Item
from jobs.engine.padding import Padding, grouped, vocoded
from jobs.formats.writers import INPUT_COLUMNS
from jobs.manifest.rows import Failure, Row, job_rows
from jobs.plan import Plan
from jobs.voices.table import VoiceTable
from s3gen.constants import FRAMES_PER_TOKEN, TOKEN_RATE
from s3gen.packing import GAP
from s3gen.ragged import plan_batches

SHARDS = 8
KEPT_BATCHES = 8  # of each shard
SHOWN_ID = 60  # characters


class Sample:
    """Up to eight shards, spread evenly over the plan.

    Args:
        max_frames: the frame budget of the batches.
        keep: keep some of the batches, for `batches_kept`.

    Attributes:
        rows: of the manifest, those that will fail included.
        lengths: tokens of each row that can be made.
        cut: how many of these are made in pieces.
        failures: rows that will fail, by code.
        examples: of each code, a row and its message.
        voices: ids of the voices that are used and there.
        batches: how many batches the rows make.
        padding: of each part of the model.
        frames, prompt_frames: of the flow in all, and of these the prompts'.
        column_bytes: of the manifest's columns that the output keeps.
    """

    def __init__(
        self, config: JobConfig, plan: Plan, voices: VoiceTable, *, max_frames: int, on_gpu: bool, keep: bool
    ) -> None:
        self._config, self._plan, self._table = config, plan, voices
        self._max_frames, self._keep = max_frames, keep
        self._random = random.Random(0)  # noqa: S311
        self._kept: list[Batch] = []
        self.rows = self.cut = self.batches = self.frames = self.prompt_frames = self.column_bytes = 0
        self.lengths: list[int] = []
        self.failures: Counter[str] = Counter()
        self.examples: dict[str, str] = {}
        self.voices: set[str] = set()
        self._device_type = "cuda" if on_gpu else "cpu"
        self.padding = {part: Padding() for part in ("flow", "encoder", "vocoder")}
        for index in np.unique(np.linspace(0, len(plan) - 1, SHARDS).round().astype(int)).tolist():
            self._take(index)

    @property
    def whole(self) -> bool:
        """Whether it is all there is."""
        return self.rows == self._plan.rows

    @property
    def batches_kept(self) -> list[Batch]:
        """Some of the batches of every shard, in a random order that is always the same."""
        return self._random.sample(self._kept, len(self._kept))

    @property
    def audio_per_frame(self) -> float:
        """Seconds of audio for a frame of the flow."""
        return sum(self.lengths) / TOKEN_RATE / max(self.frames, 1)

    def _take(self, index: int) -> None:
        shard = self._plan.shard(index)
        table = self._plan.manifest.read(shard.spans, self._config.storage_options)
        self.rows += shard.rows
        self.column_bytes += _kept_columns(table, keep_inputs=self._config.keep_inputs).nbytes
        rows = list(self._good(table))
        if not rows:
            return
        self.lengths += [len(item.tokens) for item in rows]
        self.cut += sum(bool(item.row.cuts) for item in rows)
        items = [piece for item in rows for piece in item.pieces()]
        batches = [[items[n] for n in each] for each in plan_batches([item.frames for item in items], self._max_frames)]
        for batch in batches:
            self._count(batch)
        self.batches += len(batches)
        if self._keep:
            self._kept += self._random.sample(batches, min(KEPT_BATCHES, len(batches)))

    def _good(self, table: pa.Table) -> Iterator[Item]:
        """Rows that can be made, with their voices; takes note of the others."""
        rows, failures = job_rows(table, self._config)
        voices = self._table.get_many(row.voice_id for row in rows)
        self.voices |= voices.keys()
        seconds = self._config.engine.prompt_seconds
        cut = {key: voice if seconds is None else voice.cut(seconds) for key, voice in voices.items()}
        for failure in (*failures, *(_unknown_voice(row) for row in rows if row.voice_id not in voices)):
            self.failures[failure.error] += 1
            self.examples.setdefault(failure.error, f"{_shown(failure.id)}: {failure.message}")
        return (Item(row, cut[row.voice_id]) for row in rows if row.voice_id in voices)

    def _count(self, batch: Batch) -> None:
        spoken = [len(item.tokens) for item in batch]
        prompts = [len(item.voice.prompt_token) for item in batch]
        self.frames += sum(item.frames for item in batch)
        self.prompt_frames += FRAMES_PER_TOKEN * sum(prompts)
        gaps = GAP * len(batch)
        self.padding["flow"].add(Padding(sum(item.frames for item in batch) + gaps, gaps))
        joined = [prompt + tokens for prompt, tokens in zip(prompts, spoken, strict=True)]
        self.padding["encoder"].add(grouped(joined, self._device_type))
        self.padding["vocoder"].add(vocoded(spoken, self._device_type))


def _kept_columns(table: pa.Table, *, keep_inputs: bool) -> pa.Table:
    return table if keep_inputs else table.drop_columns([name for name in INPUT_COLUMNS if name in table.column_names])


def _unknown_voice(row: Row) -> Failure:
    message = f"the voice table has no voice {_shown(row.voice_id)}"
    return Failure(row.position, row.id, row.voice_id, "unknown_voice", message)


def _shown(name: str | None) -> str:
    """A name from outside as any terminal may get it."""
    return "null" if name is None else repr(name if len(name) <= SHOWN_ID else f"{name[:SHOWN_ID]}...")
