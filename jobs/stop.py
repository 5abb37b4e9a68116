"""SIGINT, SIGTERM and SIGHUP while a run is under way."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import threading
from collections.abc import Iterator
from types import FrameType

log = logging.getLogger(__name__)

LEAVE_SECONDS = 28.0  # after the first signal; machines that go away often give 30


class Stop:
    """SIGINT, SIGTERM and SIGHUP, which comes when a terminal is closed, while a run is under way.

    Outside of ``graceful`` blocks they raise KeyboardInterrupt, which unwinds the run at once; inside they are only
    noted, for whoever asks ``requested``. A second SIGINT raises in any case.

    What then hangs, such as a store that does not answer, keeps no run alive: `LEAVE_SECONDS` after the first signal
    the process ends whatever it does, with exit code 1. Its lease lapses by itself then.
    """

    def __init__(self) -> None:
        self.signal: str | None = None
        self._graceful = False
        self._last_resort: threading.Timer | None = None

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
        numbers = (signal.SIGINT, *heeded(signal.SIGTERM, signal.SIGHUP))
        before = {number: signal.signal(number, self._heard) for number in numbers}
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
            if self._last_resort is not None:
                self._last_resort.cancel()

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
        if self._last_resort is None:
            self._last_resort = threading.Timer(LEAVE_SECONDS, _leave)
            self._last_resort.daemon = True
            self._last_resort.start()
        if not self._graceful or (again and number == signal.SIGINT):
            raise KeyboardInterrupt


def heeded(*numbers: signal.Signals) -> list[signal.Signals]:
    """Those signals that this process was not started to ignore, as ``nohup`` starts it for SIGHUP."""
    return [number for number in numbers if signal.getsignal(number) is not signal.SIG_IGN]


def _leave() -> None:
    log.error("still here %g s after the signal to stop: leaving at once; what is committed stays", LEAVE_SECONDS)
    os._exit(1)
