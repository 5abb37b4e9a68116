"""The way of a batch's waves from the device into this machine's memory, beside the device's other work."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from jobs.audio.audiofile import Samples


class Fetch:
    """The waves of one batch, on their way since it was made.

    On CUDA they go as one tensor into pinned memory, on a stream of their own that waits for what has been queued up
    to now, and for nothing that is queued later. On a CPU they are there.

    Args:
        waves: 1-D float32, at least one, all on one device.
        stream: where CUDA copies; None on a CPU.
    """

    def __init__(self, waves: Sequence[Tensor], stream: torch.cuda.Stream | None) -> None:
        self._lengths = [len(wave) for wave in waves]
        # Kept until the copy is done: its memory is the compute stream's, which would give it to the next batch.
        self._source: Tensor | None = torch.cat(list(waves))
        self._event: torch.cuda.Event | None = None
        if stream is None:
            self._host = self._source
        else:
            self._host = torch.empty(self._source.shape, dtype=self._source.dtype, pin_memory=True)
            self._event = self._copy(self._source, stream)

    def _copy(self, source: Tensor, stream: torch.cuda.Stream) -> torch.cuda.Event:
        stream.wait_stream(torch.cuda.current_stream(source.device))
        with torch.cuda.stream(stream):
            self._host.copy_(source, non_blocking=True)
        # One that sleeps while it is awaited: the core is the encoders'.
        event = torch.cuda.Event(blocking=True)
        event.record(stream)
        return event

    @property
    def ready(self) -> bool:
        """Whether `take` would not wait. An error of the device may come out here, as from `take`."""
        return self._event is None or self._event.query()

    def take(self) -> list[Samples]:
        """The waves, once they are here: views of one buffer, which lives as long as any of them.

        Raises:
            torch.AcceleratorError: something that was queued before the copy has failed.
        """
        if self._event is not None:
            self._event.synchronize()
        self._source = None
        return [wave.numpy() for wave in self._host.split(self._lengths)]
