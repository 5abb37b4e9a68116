"""SIGINT and SIGTERM while a run is under way."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType


class Stop:
    """SIGINT and SIGTERM while a run is under way.

    Outside of ``graceful`` blocks they raise KeyboardInterrupt, which unwinds the run at once; inside they are only
    noted, for whoever asks ``requested``. A second SIGINT raises in any case.
    """

    def __init__(self) -> None:
        self.signal: str | None = None
        self._graceful = False

    @property
    def requested(self) -> bool:
        """Whether one of them has come."""
        return self.signal is not None

    @contextlib.contextmanager
    def listening(self) -> Iterator[Stop]:
        """Takes the signals over; to be entered after Ray has started, which sets handlers of its own."""
        if threading.current_thread() is not threading.main_thread():
            yield self
            return
        before = {number: signal.signal(number, self._heard) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    @contextlib.contextmanager
    def graceful(self) -> Iterator[None]:
        """The block looks at ``requested`` itself, often."""
        self._graceful = True
        try:
            yield
        finally:
            self._graceful = False

    def _heard(self, number: int, frame: FrameType | None) -> None:
        again = self.requested
        self.signal = signal.Signals(number).name
        if not self._graceful or (again and number == signal.SIGINT):
            raise KeyboardInterrupt
