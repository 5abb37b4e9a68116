"""A batch: rows with their voices, or pieces of them; and what can be wrong with one, as the failures table says it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch

from jobs.audio.audiofile import Samples
from jobs.crew.schedule import BrokenWorker
from jobs.manifest.manifest import Ints
from jobs.manifest.rows import Failure, Row
from s3gen.constants import FRAMES_PER_TOKEN, SAMPLE_RATE, SAMPLES_PER_TOKEN
from s3gen.splitting import Piece, pieces
from s3gen.voice import Voice


@dataclass(frozen=True, slots=True)
class Item:
    """A row with its voice.

    Attributes:
        piece: what is made of the row; None: all of it.
    """

    row: Row
    voice: Voice
    piece: Piece | None = None

    @property
    def tokens(self) -> Ints:
        """(L,) what is spoken."""
        return self.row.tokens if self.piece is None else self.row.tokens[self.piece.start : self.piece.end]

    @property
    def start(self) -> int:
        """How many of the row's tokens come before."""
        return 0 if self.piece is None else self.piece.start

    @property
    def frames(self) -> int:
        """What it takes of a batch's budget."""
        return FRAMES_PER_TOKEN * (len(self.voice.prompt_token) + len(self.tokens))

    def pieces(self) -> Iterator[Item]:
        """The pieces that the row is cut into, or the row."""
        if not self.row.cuts:
            yield self
            return
        for piece in pieces(len(self.row.tokens), self.row.cuts):
            yield replace(self, piece=piece)


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


def misfit(tokens: int, samples: Samples) -> Trouble | None:
    """What is wrong with the length of a wave of so many tokens."""
    expected = SAMPLES_PER_TOKEN * tokens
    if len(samples) == expected:
        return None
    return Trouble("wrong_length", f"{len(samples)} samples for {tokens} tokens, not {expected}")


def fault(tokens: int, samples: Samples) -> Trouble | None:
    """What makes a wave of so many tokens unfit whatever the configuration says."""
    trouble = misfit(tokens, samples)
    if trouble is not None:
        return trouble
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
