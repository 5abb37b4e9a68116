"""What a job will take, before it is begun: counts from footers, and a sample of its shards for the rest."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch

from jobs.budget import ASSUMED_GPU_FRAMES, CPU_FRAMES
from jobs.config import JobConfig
from jobs.manifest import Manifest, check_rows
from jobs.padding import Padding, grouped, vocoded
from jobs.plan import Plan, make_plan
from jobs.voices import VoiceTable
from s3gen.constants import FRAMES_PER_TOKEN, TOKEN_RATE
from s3gen.packing import GAP
from s3gen.ragged import plan_batches

SAMPLED_SHARDS = 8


@dataclass(kw_only=True, slots=True)
class Estimate:
    """A job in numbers."""

    shards: int
    rows: int
    audio_hours: float  # of all rows; from the sampled rows where those are all, else from the manifest's footers
    max_frames: int  # the frame budget that the batches below have
    max_frames_assumed: bool  # the job itself will find its own, from the memory of its GPUs
    sampled_rows: int
    sampled_failures: dict[str, int] = field(default_factory=dict)  # rows of the sample that will fail, by code
    batches: int = 0  # of the sample
    padding: dict[str, float] = field(default_factory=dict)  # its share in what each part of the model computes

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)


def estimate(config: JobConfig, limit: int | None = None) -> Estimate:
    """Reads footers, and some shards' rows and voices; writes nothing and loads no model.

    Raises:
        InputError: the manifest or the voice table cannot be used.
    """
    manifest = Manifest.scan(config.manifest, config.storage_options)
    voices = VoiceTable.open(config.voices, config.storage_options)
    plan = make_plan(manifest, config.shard_rows, limit)
    sampling = _Sampling(config, plan, voices)
    for index in np.unique(np.linspace(0, len(plan) - 1, SAMPLED_SHARDS).round().astype(int)).tolist():
        sampling.take(index)
    return sampling.result()


class _Sampling:
    """Some shards, batched as a worker would batch them."""

    def __init__(self, config: JobConfig, plan: Plan, voices: VoiceTable) -> None:
        self._config, self._plan, self._voices = config, plan, voices
        self._failures: Counter[str] = Counter()
        self._on_gpu = _on_gpu(config)
        self._max_frames, self._assumed = _frame_budget(config, on_gpu=self._on_gpu)
        self._rows = self._tokens = self._batches = 0
        self._padding = {part: Padding() for part in ("flow", "encoder", "vocoder")}

    def take(self, index: int) -> None:
        shard = self._plan.shard(index)
        table = self._plan.manifest.read(shard.spans, self._config.storage_options)
        rows, failures = check_rows(table, job_seed=self._config.seed, max_tokens=self._config.max_tokens)
        self._failures.update(failure.error for failure in failures)
        voices = self._voices.get_many(row.voice_id for row in rows)
        self._failures["unknown_voice"] += sum(1 for row in rows if row.voice_id not in voices)
        rows = [row for row in rows if row.voice_id in voices]
        prompts = {voice_id: self._prompt(len(voice.prompt_token)) for voice_id, voice in voices.items()}
        joined = [prompts[row.voice_id] + len(row.tokens) for row in rows]
        batches = plan_batches([FRAMES_PER_TOKEN * tokens for tokens in joined], self._max_frames)
        for batch in batches:
            self._compute([joined[row] for row in batch], [len(rows[row].tokens) for row in batch])
        self._batches += len(batches)
        self._rows += shard.rows
        self._tokens += sum(len(row.tokens) for row in rows)

    def _compute(self, joined: list[int], spoken: list[int]) -> None:
        """What the parts of the model are given for a batch: tokens of its rows, with and without their prompts."""
        gaps, device_type = GAP * len(joined), "cuda" if self._on_gpu else "cpu"
        self._padding["flow"].add(Padding(FRAMES_PER_TOKEN * sum(joined) + gaps, gaps))
        self._padding["encoder"].add(grouped(joined, device_type))
        self._padding["vocoder"].add(vocoded(spoken, device_type))

    def result(self) -> Estimate:
        groups = self._plan.manifest.groups
        mean = sum(int(group.tokens.sum()) for group in groups) / self._plan.manifest.rows
        tokens = self._tokens if self._rows == self._plan.rows else mean * self._plan.rows
        return Estimate(
            shards=len(self._plan),
            rows=self._plan.rows,
            audio_hours=tokens / TOKEN_RATE / 3600,
            max_frames=self._max_frames,
            max_frames_assumed=self._assumed,
            sampled_rows=self._rows,
            sampled_failures={code: count for code, count in sorted(self._failures.items()) if count},
            batches=self._batches,
            padding={part: padding.share for part, padding in self._padding.items()},
        )

    def _prompt(self, tokens: int) -> int:
        seconds = self._config.engine.prompt_seconds
        return tokens if seconds is None else min(tokens, max(1, int(seconds * TOKEN_RATE)))


def _on_gpu(config: JobConfig) -> bool:
    # A cluster is not asked; whoever has one for this has GPUs in it.
    maybe = torch.cuda.is_available() or config.ray_address is not None
    return config.engine.device == "cuda" or (config.engine.device == "auto" and maybe)


def _frame_budget(config: JobConfig, *, on_gpu: bool) -> tuple[int, bool]:
    """The budget of a job, and whether it is a guess at what the job will find."""
    if config.batch.max_frames != "auto":
        return config.batch.max_frames, False
    return (ASSUMED_GPU_FRAMES, True) if on_gpu else (CPU_FRAMES, False)
