"""How fast this machine makes the rows of a job: some of their batches, timed."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch

from jobs.audio.audiofile import Samples, encode
from jobs.audio.mastering import Mastering
from jobs.config.config import JobConfig
from jobs.crew.placement import Node, share_of
from jobs.engine.batch import Batch, Trouble, fault
from jobs.engine.engine import Engine
from jobs.engine.models import check_solver, device_of, open_prepared, solver_of
from jobs.errors import InputError, JobError
from jobs.estimate.budget import Calibrator, CudaMeter
from jobs.estimate.disk import SPEECH_FLAC_SHARE, wav_bytes
from jobs.voices.table import VoiceTable
from s3gen import S3GenModel

log = logging.getLogger(__name__)

SECONDS = 40.0  # of batches; with what comes before it is about a minute
TRY_SHARE, BATCH_SHARE = 8, 4  # a first batch may take this part of that time, and each later one
KEPT_CLIPS = 64  # whose size as FLAC is looked at


@dataclass(frozen=True, kw_only=True, slots=True)
class Speed:
    """What was measured.

    Attributes:
        device: what it was measured on.
        frames: that the flow made, prompts included: its work, and most of all.
        audio_per_frame: seconds, in the rows that the batches are a choice of.
        flac_share: bytes of FLAC for a byte of WAV, of some of the clips.
    """

    device: str
    batches: int
    rows: int
    frames: int
    seconds: float
    audio_per_frame: float
    flac_share: float

    @property
    def x_real_time(self) -> float:
        """Seconds of audio per second, of one worker: by frames, so that a few rows with long prompts do for all."""
        return self.frames / self.seconds * self.audio_per_frame


class Enough(Exception):
    """The time for measuring is over."""


class Gauge:
    """A job's model on this machine, as one of the job's workers has it.

    Args:
        model: prepared and on its device.
        config: of the job.
        max_frames: the frame budget of its batches.
        device: how its user calls the device.
    """

    def __init__(self, model: S3GenModel, config: JobConfig, *, max_frames: int, device: str) -> None:
        self.max_frames, self.device = max_frames, device
        solver = solver_of(config)
        self._mastering, self._rate = Mastering(config.wave), config.wave.sample_rate
        self._engine = Engine(model, solver=solver, start_fade=config.start_fade)
        self._engine.call(lambda: model.warm_up(max_frames, solver=solver))

    @classmethod
    def open(cls, config: JobConfig, voices: VoiceTable, max_frames: int) -> Gauge:
        """Loads the model.

        Args:
            max_frames: the frame budget, where the configuration or the CPU decides.

        Raises:
            InputError: no such model or device, another model than made the voices, a solver that it cannot have, or a
                job for the GPUs of a cluster.
        """
        device = device_of(config.engine.device)
        if device == "cpu" and config.ray_address is not None and config.engine.device != "cpu":
            raise InputError(
                f"--calibrate: this machine has no GPU, and the job is for the cluster at {config.ray_address}; run it "
                "on a machine with such a GPU, or give --speed"
            )
        gpus = config.gpus_per_worker if device == "cuda" else 0.0
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        threads = share_of([Node(cores, torch.cuda.device_count() if gpus else 0)], config.workers, gpus).threads
        log.info("loading %s", config.model)
        model = open_prepared(config, config.storage_options, threads)
        voices.check_model(model.voice_fingerprint())
        check_solver(model, config)
        if device == "cpu":
            return cls(model, config, max_frames=max_frames, device=f"a CPU, threads: {threads}")
        if config.batch.max_frames == "auto":
            found = Calibrator(model, CudaMeter(gpus), solver_of(config)).run(0)
            log.info("%s", found)
            max_frames = found.max_frames
        return cls(model, config, max_frames=max_frames, device=torch.cuda.get_device_name())

    def measure(self, batches: Sequence[Batch], audio_per_frame: float, seconds: float = SECONDS) -> Speed:
        """Makes batches for so long, or all of them; longer only where two rows take longer.

        Args:
            audio_per_frame: see `Speed`.

        Raises:
            JobError: none could be made.
        """
        if not batches:
            raise JobError("--calibrate: no row of the sample can be made; without it, plan says why")
        log.info("making batches for %.0f seconds at most", 1.5 * seconds)
        # Upwards from one short row: on a slow device a whole batch may take hours.
        tried = self._make([[min(batches[0], key=lambda item: item.frames)]])
        if tried.seconds < seconds / TRY_SHARE:
            tried = self._make([_cut(batches[0], tried.frame_rate * seconds / TRY_SHARE)])
        most = tried.frame_rate * seconds / BATCH_SHARE
        made = self._make([_cut(batch, most) for batch in batches], seconds)
        return Speed(
            device=self.device,
            batches=made.batches,
            rows=made.rows,
            frames=made.frames,
            seconds=made.seconds,
            audio_per_frame=audio_per_frame,
            flac_share=made.flac_share(self._mastering, self._rate),
        )

    def _make(self, batches: Sequence[Batch], seconds: float = math.inf) -> _Made:
        made = _Made(time.monotonic, seconds)
        with contextlib.suppress(Enough):
            self._engine.make(batches, made.take).result()
        if not made.frames:
            raise JobError(f"--calibrate: no row of the sample could be made: {made.trouble}")
        return made


def _cut(batch: Batch, frames: float) -> Batch:
    """At most so many frames of a batch, but one row: rows from all over it, since its longest come first."""
    longest = max(item.frames for item in batch)
    step = math.ceil(len(batch) / max(1, int(frames / longest)))
    return batch[(step - 1) // 2 :: step]


@dataclass(slots=True)
class _Made:
    """What the engine has delivered."""

    clock: Callable[[], float]
    limit: float  # seconds
    started: float = field(init=False)
    seconds: float = 0.0  # from the start to the last delivery
    batches: int = 0
    rows: int = 0
    frames: int = 0
    clips: list[Samples] = field(default_factory=list)
    trouble: str = ""

    def __post_init__(self) -> None:
        self.started = self.clock()

    def take(self, batch: Batch, result: list[Samples] | Trouble) -> None:
        """See `Engine.make`. Raises Enough when the time is over."""
        self.seconds = self.clock() - self.started
        if isinstance(result, Trouble):
            self.trouble = self.trouble or f"{result.error}: {result.message}"
        else:
            self.batches += 1
            self.rows += len(batch)
            self.frames += sum(item.frames for item in batch)
            good = [wave for item, wave in zip(batch, result, strict=True) if fault(len(item.tokens), wave) is None]
            # Copies: the waves of a batch are one buffer.
            self.clips += [wave.copy() for wave in good[: KEPT_CLIPS - len(self.clips)]]
        if self.seconds >= self.limit:
            raise Enough

    @property
    def frame_rate(self) -> float:
        """Frames per second, prompts included."""
        return self.frames / self.seconds

    def flac_share(self, mastering: Mastering, rate: int) -> float:
        """Bytes of FLAC for a byte of WAV, of the clips that were kept, as they would be stored."""
        clips = [mastering.master(clip).samples for clip in self.clips]
        wav = sum(wav_bytes(1, len(clip)) for clip in clips)
        return sum(len(encode(clip, "flac", rate)) for clip in clips) / wav if wav else SPEECH_FLAC_SHARE
