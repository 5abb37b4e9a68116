"""Recordings that are given to a job: opened anywhere, and looked at before the model has them."""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Callable, Iterator
from typing import IO, Any, cast

import numpy as np

from jobs.audio.audiofile import Samples, UnreadableAudio
from jobs.errors import InputError, Refused
from jobs.storage.filesystems import reading_errors
from jobs.storage.inputs import open_input
from jobs.storage.urls import Options
from s3gen.constants import LOUDEST


class Rejected(Exception):
    """A recording that cannot be used.

    Attributes:
        code: of the failures table.
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


@contextlib.contextmanager
def reading() -> Iterator[None]:
    """Rejects a recording for what is wrong with it while it is read or decoded.

    Raises:
        StorageError: its store is in trouble, of which nothing follows for the recording.
    """
    try:
        yield
    except FileNotFoundError:
        raise Rejected("not_found", "no such file") from None
    except (UnreadableAudio, Refused, InputError) as error:
        raise Rejected("unreadable", str(error)) from None


@contextlib.contextmanager
def opened(url: str, options: Options | None) -> Iterator[IO[bytes]]:
    """A recording's file; rejects it, and raises, as `reading` does."""
    with reading(), open_input(url, options) as file:
        watched = _Watched(file)
        # Where a file is far it is waited for here: soundfile opens only one at a time.
        watched.read(1)
        watched.seek(0)
        try:
            yield cast(IO[bytes], watched)
        finally:
            if watched.trouble is not None:
                with reading_errors("read", url, options):
                    raise watched.trouble


class _Watched(io.RawIOBase):
    """A file that is read by libsndfile, to which an error in a read is the end of the file.

    Attributes:
        trouble: the first error; nothing is read after it.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.trouble: Exception | None = None

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        return int(self._tried(lambda: self._file.seek(offset, whence), 0))

    def tell(self) -> int:
        return int(self._tried(self._file.tell, 0))

    def read(self, size: int | None = -1) -> bytes:
        return bytes(self._tried(lambda: self._file.read(-1 if size is None else size), b""))

    def readinto(self, buffer: Any) -> int:
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def _tried(self, request: Callable[[], Any], nothing: Any) -> Any:
        if self.trouble is None:
            try:
                return request()
            except Exception as error:
                self.trouble = error
        return nothing


def check_values(samples: Samples, rate: int) -> None:
    """Rejects what the model cannot hear: values that are not finite, or so loud that they overflow."""
    if not np.isfinite(samples).all():
        place = int(np.flatnonzero(~np.isfinite(samples))[0])
        raise Rejected("not_finite", f"the sample at {place / rate:.3f} s is {samples[place]}")
    peak = float(np.abs(samples).max(initial=0))
    if peak > LOUDEST:  # what overflows in one clip is not finite in the whole group
        raise Rejected("too_loud", f"the loudest sample is {peak:.2g} of full scale; {LOUDEST:.2g} is the most")
