"""A batch: rows with their voices; and what can be wrong with one, as the failures table says it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from jobs.audiofile import Samples
from jobs.rows import Failure, Row
from jobs.schedule import BrokenWorker
from s3gen.constants import FRAMES_PER_TOKEN, SAMPLE_RATE, SAMPLES_PER_TOKEN
from s3gen.voice import Voice


@dataclass(frozen=True, slots=True)
class Item:
    """A row with its voice."""

    row: Row
    voice: Voice

    @property
    def frames(self) -> int:
        """What it takes of a batch's budget."""
        return FRAMES_PER_TOKEN * (len(self.voice.prompt_token) + len(self.row.tokens))


Batch = list[Item]


@dataclass(frozen=True, slots=True)
class Trouble:
    """Why a row could not be made. No exception is kept: its traceback would keep the batch's tensors."""

    error: str
    message: str
    starved: bool = False  # of memory: with less of it in use elsewhere, the same batch may do

    def of(self, row: Row) -> Failure:
        """The row's entry in the failures table."""
        return Failure(row.position, row.id, row.voice_id, self.error, self.message)


def halves(batch: Batch) -> list[Batch]:
    """Two or more rows in two batches, the first the larger."""
    middle = (len(batch) + 1) // 2
    return [batch[:middle], batch[middle:]]


def fault(row: Row, samples: Samples) -> Trouble | None:
    """What makes a wave unfit whatever the configuration says."""
    expected = SAMPLES_PER_TOKEN * len(row.tokens)
    if len(samples) != expected:
        return Trouble("wrong_length", f"{len(samples)} samples for {len(row.tokens)} tokens, not {expected}")
    bad = np.flatnonzero(~np.isfinite(samples))
    if len(bad):
        return Trouble("not_finite", f"{len(bad)} samples are not finite, the first at {bad[0] / SAMPLE_RATE:.3f} s")
    return None


def trouble_of(error: Exception) -> Trouble:
    """What an exception of the model means for its batch.

    Raises:
        BrokenWorker: every later call on this device would fail too, so the batch is not to blame.
    """
    text = _line(error)
    # On a CPU torch has no type of its own for it.
    starved = isinstance(error, MemoryError | torch.OutOfMemoryError) or "DefaultCPUAllocator" in text
    if starved or "CUDA error: out of memory" in text or "_ALLOC_FAILED" in text:
        message = f"alone in its batch it needs more memory than there is: {text}"
        return Trouble("out_of_memory", message, starved=True)
    if isinstance(error, torch.AcceleratorError) or "CUDA error" in text:
        raise broken(error) from error
    return Trouble("synthesis_error", f"{type(error).__name__}: {text}")


def broken(error: Exception) -> BrokenWorker:
    """Says that the device is of no more use, and why."""
    return BrokenWorker(f"{type(error).__name__}: {_line(error)}")


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:500]
