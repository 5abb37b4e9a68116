"""Recordings that are given to a job: opened anywhere, and looked at before the model has them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import IO

import numpy as np

from jobs.audiofile import Samples, UnreadableAudio
from jobs.errors import InputError, StorageError
from jobs.inputs import open_input
from jobs.urls import Options
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
    """Rejects a recording for what goes wrong while it is read or decoded."""
    try:
        yield
    except FileNotFoundError:
        raise Rejected("not_found", "no such file") from None
    except (UnreadableAudio, StorageError, OSError, InputError) as error:
        raise Rejected("unreadable", str(error)) from None


@contextlib.contextmanager
def opened(url: str, options: Options | None) -> Iterator[IO[bytes]]:
    """A recording's file; rejects it as `reading` does."""
    with reading(), open_input(url, options) as file:
        yield file


def check_values(samples: Samples, rate: int) -> None:
    """Rejects what the model cannot hear: values that are not finite, or so loud that they overflow."""
    if not np.isfinite(samples).all():
        place = int(np.flatnonzero(~np.isfinite(samples))[0])
        raise Rejected("not_finite", f"the sample at {place / rate:.3f} s is {samples[place]}")
    peak = float(np.abs(samples).max(initial=0))
    if peak > LOUDEST:  # what overflows in one clip is not finite in the whole group
        raise Rejected("too_loud", f"the loudest sample is {peak:.2g} of full scale; {LOUDEST:.2g} is the most")
