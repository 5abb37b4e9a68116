"""Standard output and error as a command uses them: that nobody reads, or that a disk is full, ends no work.

A run of days would otherwise end with the terminal, the pipe or the log file that its lines went to, and a job that is
finished would be called a failure for the want of somebody who reads so.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import Any, TextIO, cast


class Lasting:
    """A text stream whose writes raise nothing.

    Attributes:
        failure: the first thing that went wrong; what was written at that time, and may be more, is lost.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self.failure: OSError | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Writes, or does not."""
        with self._noting():
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Writes what was held back, or does not."""
        with self._noting():
            self._stream.flush()

    @contextlib.contextmanager
    def _noting(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self.failure = self.failure or error

    def leave(self) -> None:
        """Drops what cannot be written: Python would try again at its end, and give an exit code of its own."""
        if self.failure is None:
            return
        try:
            self._stream.flush()
        except OSError:
            with contextlib.suppress(OSError), open(os.devnull, "wb") as nothing:
                os.dup2(nothing.fileno(), self._stream.fileno())


@contextlib.contextmanager
def lasting_streams() -> Iterator[None]:
    """Standard output and error outlast their readers during the block; one that is closed stays so."""
    before = sys.stdout, sys.stderr
    streams = [None if stream is None else Lasting(stream) for stream in before]
    sys.stdout, sys.stderr = cast(tuple[TextIO, TextIO], streams)
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before
        for stream in streams:
            if stream is not None:
                stream.leave()


def unprinted() -> OSError | None:
    """Why standard output did not get all that was printed, if so; a pipe whose reader has left is one reason."""
    return getattr(sys.stdout, "failure", None)
