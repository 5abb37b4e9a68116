"""What a worker has learnt of how large a batch its device has memory for."""

from __future__ import annotations

from jobs.engine.batch import Batch, halves


class Room:
    """Grows never: once a batch has starved with the device to itself, none of its size is tried again."""

    def __init__(self) -> None:
        self._fitted = 0  # padded frames of the largest batch that has found room
        self._limit: int | None = None  # of a batch that may be tried, once one has starved

    def held(self, batch: Batch) -> None:
        """There was room for a batch."""
        self._fitted = max(self._fitted, padded_frames(batch))

    def starved(self, batch: Batch) -> None:
        """There was not enough for one of two or more rows, with no other on the device; its halves come next."""
        frames = padded_frames(batch)
        if self._fitted >= frames:
            self._fitted = 0  # it would find no room now
        self._limit = max(self._fitted, *map(padded_frames, halves(batch)))

    def is_too_small_for(self, batch: Batch) -> bool:
        """Whether a batch is to be split before it is tried."""
        return self._limit is not None and len(batch) > 1 and padded_frames(batch) > self._limit


def padded_frames(batch: Batch) -> int:
    """Rows times the longest of them: what a batch's memory follows."""
    return len(batch) * max(item.frames for item in batch)
