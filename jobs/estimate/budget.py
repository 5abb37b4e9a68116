"""The automatic frame budget: how large a batch may be, found once, when a job begins.

On a CPU it is a constant. On a GPU two batches are made there, as a worker would make them, and the memory that they
take says how large one may be. The job keeps the number: every worker and every resume makes the same batches.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from jobs.config.config import config_from
from jobs.engine.batch import trouble_of
from jobs.engine.models import device_of, open_prepared, solver_of
from jobs.storage.urls import Options
from s3gen import S3GenModel, Solver, Voice
from s3gen.constants import FRAMES_PER_TOKEN, MEL_BINS, SPEAKER_DIM

CPU_FRAMES = 8_192
ASSUMED_GPU_FRAMES = 32_768  # for figures before there is a GPU to ask

# Fewer than one long row needs bring nothing: a row that is longer than the budget is a batch of its own.
LEAST_FRAMES = 1_024
# 44 minutes of prompts and speech, which are 370 TFLOP of ten solver steps: no GPU waits for launches then, and more
# would only make shards of two or three batches, of rows of less equal length.
MOST_FRAMES = 131_072
# The rest is for waves on their way to the host, for batches of other shapes, and for pieces too small to use.
MEMORY_SHARE = 0.8

TRIED_FRAMES = 4_096  # of the smaller of the two batches; the larger has four times as many
# Waves and what the vocoder holds follow the speech alone: a short prompt is the worst case.
PROMPT_TOKENS, SPEECH_TOKENS = 32, 224
ROW_FRAMES = FRAMES_PER_TOKEN * (PROMPT_TOKENS + SPEECH_TOKENS)


@dataclass(frozen=True, slots=True)
class Peak:
    """What a batch took."""

    frames: int
    bytes: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Calibration:
    """A frame budget, and what it was found from."""

    max_frames: int
    free: int = 0  # bytes that this worker's batches could take; 0 on a CPU, where nothing is measured
    total: int = 0  # bytes of the GPU

    def __str__(self) -> str:
        found = f"frame budget {self.max_frames}"
        return f"{found}, from {self.free / 1e9:.1f} GB free of {self.total / 1e9:.1f}" if self.total else found


class MemoryMeter(Protocol):
    """Tells how much memory of a device there is and how much is taken."""

    def free(self) -> int:
        """Bytes that batches of this worker may take in all."""

    def total(self) -> int:
        """Bytes of the device."""

    def taken(self) -> int:
        """Bytes that this process holds of it, of which nothing is to spare."""

    def peak(self, run: Callable[[], object]) -> int:
        """The most that was taken while ``run`` ran. Raises what it raises."""


class CudaMeter:
    """Memory of this process's GPU.

    It counts what the allocator has reserved, not what tensors fill of it: what lies between tensors, and what CUDA
    graphs keep for themselves, is as little there for others.

    Args:
        share: of the GPU, for this worker: 0.5 where two share it; 1 or more is all of it.
    """

    def __init__(self, share: float) -> None:
        self._share = min(share, 1.0)

    def free(self) -> int:
        """What is free now, or would be with as many workers on this GPU as its shares allow."""
        taken = self.taken()
        free, total = torch.cuda.mem_get_info()
        return min(free, int(self._share * total) - taken)

    def total(self) -> int:
        """Of the whole GPU."""
        return torch.cuda.mem_get_info()[1]

    def taken(self) -> int:
        """See `MemoryMeter.taken`."""
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        return torch.cuda.memory_reserved()

    def peak(self, run: Callable[[], object]) -> int:
        """See `MemoryMeter.peak`."""
        self.taken()
        torch.cuda.reset_peak_memory_stats()
        run()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_reserved()


class Constant:
    """What a CPU has for a calibrator."""

    def run(self, task: object) -> Calibration:
        """The constant."""
        return Calibration(max_frames=CPU_FRAMES)


class Calibrator:
    """Finds the budget; in a worker's place, with its share of a GPU.

    Args:
        model: prepared and on its device.
        meter: of that device.
        solver: of the flow; None for the model's own.
    """

    def __init__(self, model: S3GenModel, meter: MemoryMeter, solver: Solver | None = None) -> None:
        self._model, self._meter, self._solver = model, meter, solver

    def run(self, task: object) -> Calibration:
        """Measures. The task says nothing: there is one."""
        # A first batch loads kernels and gives libraries their work space, which is no part of what batches take.
        self._peak(LEAST_FRAMES)
        free, before = self._meter.free(), self._meter.taken()
        # Upwards: what the model keeps of one batch for the next is then counted once.
        small = self._largest(TRIED_FRAMES, before, least=ROW_FRAMES)
        large = self._largest(4 * small.frames, before, least=2 * small.frames) if small else None
        budget = budget_of([peak for peak in (small, large) if peak], free)
        return Calibration(max_frames=budget, free=free, total=self._meter.total())

    def _largest(self, frames: int, before: int, least: int) -> Peak | None:
        """What the first batch takes that fits, of so many frames, half of them, and so on down to `least`."""
        while frames >= least:
            peak = self._peak(frames)
            if peak is not None:
                return Peak(frames, peak - before)
            frames //= 2
        return None

    def _peak(self, frames: int) -> int | None:
        """The most that is taken while a batch of so many frames is made; None when there is not enough."""
        try:
            return self._meter.peak(lambda: self._make(frames // ROW_FRAMES))
        except Exception as error:
            if not trouble_of(error).starved:
                raise
            return None

    def _make(self, rows: int) -> None:
        tokens = [torch.arange(SPEECH_TOKENS)] * rows
        self._model.synthesize(tokens, [_voice()] * rows, list(range(rows)), solver=self._solver)


def open_calibrator(*, config: Mapping[str, Any], options: Options, threads: int, gpus: float) -> Calibrator | Constant:
    """What finds the budget of a job on the device that this process has.

    Args:
        config: `JobConfig.frozen`.
        threads: as for `open_prepared`.
        gpus: of each worker.

    Raises:
        InputError: as `open_prepared`.
    """
    job = config_from(config)
    if device_of(job.engine.device) == "cpu":
        return Constant()
    return Calibrator(open_prepared(job, options, threads), CudaMeter(gpus), solver_of(job))


def budget_of(peaks: Sequence[Peak], free: int) -> int:
    """The largest power of two of frames whose batch fits, by the line through what was measured.

    Args:
        peaks: of two batches, of one where a smaller one fits only, of none where none does.
        free: bytes for a batch; `MEMORY_SHARE` of them are used.

    Returns:
        `LEAST_FRAMES` to `MOST_FRAMES`.
    """
    if not peaks:
        return LEAST_FRAMES
    large, small = max(peaks, key=lambda peak: peak.frames), min(peaks, key=lambda peak: peak.frames)
    if large.bytes > small.bytes:
        per_frame = (large.bytes - small.bytes) / (large.frames - small.frames)
    else:
        per_frame = max(1.0, large.bytes / large.frames)
    fitting = large.frames + (MEMORY_SHARE * free - large.bytes) / per_frame
    within = int(min(max(fitting, LEAST_FRAMES), MOST_FRAMES))
    return 1 << (within.bit_length() - 1)


def _voice() -> Voice:
    prompt = torch.arange(PROMPT_TOKENS)
    return Voice(prompt, torch.zeros(FRAMES_PER_TOKEN * PROMPT_TOKENS, MEL_BINS), torch.ones(SPEAKER_DIM))
