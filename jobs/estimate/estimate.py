"""What a job will take, before it is begun: counts from footers, and a sample of its shards for the rest."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

import torch

from jobs.config.config import JobConfig
from jobs.estimate.begun import Outset
from jobs.estimate.budget import ASSUMED_GPU_FRAMES, CPU_FRAMES
from jobs.estimate.disk import SPEECH_FLAC_SHARE, disk_bytes
from jobs.estimate.sample import Sample
from jobs.estimate.speed import Gauge, Speed
from jobs.manifest.manifest import Manifest
from jobs.plan import Plan, make_plan
from jobs.voices.table import VoiceTable
from s3gen.constants import TOKEN_RATE


@dataclass(frozen=True, kw_only=True, slots=True)
class Estimate:
    """A job in numbers.

    Attributes:
        audio_hours: of all rows before they are trimmed; from the sampled rows where those are all, else from the
            manifest's footers.
        max_frames: the frame budget that the batches below have.
        max_frames_assumed: the job itself will find its own, from the memory of its GPUs.
        voices: in the voice table.
        sampled_voices: of the table, that the sample uses.
        row_seconds: the shortest, the median and the longest row of the sample; empty without a row that can be made.
        sampled_cut: rows of the sample that will be made in pieces, since they have more than max_tokens.
        sampled_failures: rows of the sample that will fail, by code.
        examples: of each of these codes, a row and what is wrong with it.
        batches: of the sample.
        padding: its share in what each part of the model computes.
        prompt_share: of the prompts, in what the flow computes.
        flac_share: bytes of FLAC for a byte of WAV: measured, or an average of recorded speech.
        disk_bytes: of a whole output, by format and encoding; of audio that is not trimmed, too.
        measured: the speed here, where it was asked for.
        on_gpu: the job will run on GPUs.
        is_begun: an earlier run has begun it.
        rows_left: to be made.
        problems: what would stop it at its start, a text each.
    """

    shards: int
    rows: int
    audio_hours: float
    max_frames: int
    max_frames_assumed: bool
    voices: int
    sampled_rows: int
    sampled_voices: int
    row_seconds: tuple[float, ...]
    sampled_cut: int
    sampled_failures: dict[str, int]
    examples: dict[str, str]
    batches: int
    padding: dict[str, float]
    prompt_share: float
    flac_share: float
    disk_bytes: dict[str, dict[str, int]]
    measured: Speed | None
    on_gpu: bool
    is_begun: bool
    rows_left: int
    problems: list[str]

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)


def estimate(config: JobConfig, limit: int | None = None, *, calibrate: bool = False) -> Estimate:
    """Reads footers, some shards' rows and voices, and what the output has; writes nothing.

    Args:
        calibrate: load the model and measure its speed on this machine, for about a minute.

    Raises:
        InputError: the manifest or the voice table cannot be used; or the model, where it is loaded.
        JobError: no row of the sample could be made.
    """
    manifest = Manifest.scan(config.manifest, config.storage_options)
    voices = VoiceTable.open(config.voices, config.storage_options)
    plan = make_plan(manifest, config.shard_rows, limit)
    on_gpu = uses_gpus(config)
    max_frames, assumed = _frame_budget(config, on_gpu=on_gpu)
    gauge = Gauge.open(config, voices, max_frames) if calibrate else None
    if gauge is not None:
        max_frames, assumed = gauge.max_frames, False
    sample = Sample(config, plan, voices, max_frames=max_frames, on_gpu=on_gpu, keep=calibrate)
    outset = Outset.of(config, plan, limit, voices)
    return Estimate(
        shards=len(plan),
        rows=plan.rows,
        max_frames=max_frames,
        max_frames_assumed=assumed,
        voices=voices.voices,
        on_gpu=on_gpu,
        is_begun=outset.is_begun,
        rows_left=outset.rows_left,
        problems=outset.problems,
        **_of_sample(sample),
        **_of_speech(config, plan, sample, gauge),
    )


def _of_sample(sample: Sample) -> dict[str, Any]:
    """What an estimate says of the sample alone."""
    return {
        "sampled_rows": sample.rows,
        "sampled_voices": len(sample.voices),
        "row_seconds": _spread(sample.lengths),
        "sampled_cut": sample.cut,
        "sampled_failures": dict(sorted(sample.failures.items())),
        "examples": sample.examples,
        "batches": sample.batches,
        "padding": {part: padding.share for part, padding in sample.padding.items()},
        "prompt_share": sample.prompt_frames / max(sample.frames, 1),
    }


def _of_speech(config: JobConfig, plan: Plan, sample: Sample, gauge: Gauge | None) -> dict[str, Any]:
    """What it says of the audio of all rows, from the sample and what can be measured with it."""
    measured = None if gauge is None else gauge.measure(sample.batches_kept, sample.audio_per_frame)
    tokens = _tokens(plan, sample, len(config.tail))
    flac_share = SPEECH_FLAC_SHARE if measured is None else measured.flac_share
    rate = config.wave.sample_rate
    kept_bytes = sample.column_bytes / sample.rows
    return {
        "audio_hours": tokens / TOKEN_RATE / 3600,
        "flac_share": flac_share,
        "disk_bytes": disk_bytes(plan.rows, round(rate / TOKEN_RATE * tokens), kept_bytes, flac_share, rate),
        "measured": measured,
    }


@dataclass(frozen=True, kw_only=True, slots=True)
class Bill:
    """What is left of a job costs at some speed; None where it does not follow from what was given.

    Attributes:
        speed: x real time of one GPU, or of one worker where there are none.
        gpu_hours: of these.
        gpus: that the job uses; None with `workers: auto`.
        hours: on all of these together.
        cost: in the currency of the price.
    """

    speed: float | None
    gpu_hours: float | None
    gpus: float | None
    hours: float | None
    cost: float | None

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)


def bill(config: JobConfig, found: Estimate, speed: float | None, price: float | None) -> Bill:
    """What the rows that are left of an estimated job cost.

    Args:
        speed: x real time of one GPU (without GPUs: of one worker); None takes what was measured, if it was.
        price: of one for an hour.
    """
    if speed is None and found.measured is not None:
        # One worker was measured; where several share a GPU, it had all of it.
        speed = found.measured.x_real_time / (max(1, config.gpus_per_worker) if found.on_gpu else 1)
    gpus = None
    if config.workers != "auto":
        gpus = config.workers * (config.gpus_per_worker if found.on_gpu else 1)
    if speed is None:
        return Bill(speed=None, gpu_hours=None, gpus=gpus, hours=None, cost=None)
    gpu_hours = found.audio_hours * found.rows_left / found.rows / speed
    return Bill(
        speed=speed,
        gpu_hours=gpu_hours,
        gpus=gpus,
        hours=None if gpus is None else gpu_hours / gpus,
        cost=None if price is None else gpu_hours * price,
    )


def _tokens(plan: Plan, sample: Sample, tail: int) -> float:
    """Of all rows: counted where the sample is all there is, else by the mean of the manifest's footers.

    Args:
        tail: tokens that are added to each row.
    """
    if sample.whole:
        return sum(sample.lengths)
    mean = sum(int(group.tokens.sum()) for group in plan.manifest.groups) / plan.manifest.rows
    return (mean + tail) * plan.rows


def _spread(lengths: list[int]) -> tuple[float, ...]:
    """The shortest, the median and the longest, in seconds."""
    if not lengths:
        return ()
    return min(lengths) / TOKEN_RATE, median(lengths) / TOKEN_RATE, max(lengths) / TOKEN_RATE


def uses_gpus(config: JobConfig) -> bool:
    """Whether a job will run on GPUs, as far as this machine can tell."""
    # A cluster is not asked; whoever has one for this has GPUs in it.
    maybe = torch.cuda.is_available() or config.ray_address is not None
    return config.engine.device == "cuda" or (config.engine.device == "auto" and maybe)


def _frame_budget(config: JobConfig, *, on_gpu: bool) -> tuple[int, bool]:
    """The budget of a job, and whether it is a guess at what the job will find."""
    if config.batch.max_frames != "auto":
        return config.batch.max_frames, False
    return (ASSUMED_GPU_FRAMES, True) if on_gpu else (CPU_FRAMES, False)
