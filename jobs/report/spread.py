"""How often values occur, in a memory that does not grow with their number."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Counts = npt.NDArray[np.int64]


class Spread:
    """How often each of evenly spaced values occurs.

    Args:
        low: the value of the first place.
        step: between two places.
    """

    def __init__(self, low: float, step: float) -> None:
        self.low, self.step = low, step
        self.counts: Counts = np.zeros(0, np.int64)

    def add(self, places: npt.NDArray[np.int64]) -> None:
        """Counts values by their places, 0 or more."""
        found = np.bincount(places)
        size = max(len(found), len(self.counts))
        self.counts = np.pad(self.counts, (0, size - len(self.counts))) + np.pad(found, (0, size - len(found)))

    @property
    def total(self) -> int:
        """Values counted."""
        return int(self.counts.sum())

    def quantile(self, share: float) -> float:
        """The smallest value that as large a share of all values does not exceed; there must be some."""
        place = int(np.searchsorted(self.counts.cumsum(), max(share * self.total, 1)))
        return self.low + self.step * min(place, len(self.counts) - 1)
