"""The sign of life of a worker: a number that moves on with each piece of work that is done."""

from __future__ import annotations

import threading


class Pulse:
    """Counts; any thread may. Only what is finished counts: a clip, a batch, a file, never that something is tried."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._count = 0

    def beat(self) -> None:
        """A piece of work is done."""
        with self._lock:
            self._count += 1

    @property
    def count(self) -> int:
        """How many are done by now."""
        return self._count
