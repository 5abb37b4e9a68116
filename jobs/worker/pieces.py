"""The pieces of rows that were cut: their waves, until a row has all of them, and the wave that they make together.

They come in any order, since batches are made of like lengths. So they wait in a local file, and memory holds one row
at a time for each thread that joins them.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from functools import partial
from typing import IO, NamedTuple

import numpy as np
import torch

from jobs.audio.audiofile import Samples
from jobs.engine.batch import Item, Trouble, misfit
from s3gen.constants import SAMPLES_PER_TOKEN
from s3gen.crossfade import runs
from s3gen.splitting import Piece


class _Place(NamedTuple):
    """Of a wave in the file, in bytes."""

    offset: int
    size: int


class Pieces:
    """The pieces of one shard. `add` is for one thread; what it returns may be called by any.

    Args:
        file: an empty file, for this alone.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._waiting: dict[int, dict[Piece, _Place]] = {}  # by the row's position
        self._failed: set[int] = set()

    def add(self, item: Item, piece: Piece, made: Samples | Trouble) -> Callable[[], Samples] | Trouble | None:
        """Takes the wave of a piece of a row, or why there is none.

        Returns:
            Once a row has all of its pieces, what reads and joins them; of its first piece that cannot be used, why; of
            every other, None. So every row that was cut is answered once.
        """
        position = item.row.position
        if position in self._failed:
            return None
        wave = made if isinstance(made, Trouble) else misfit(len(item.tokens), made) or made
        if isinstance(wave, Trouble):
            self._failed.add(position)
            self._waiting.pop(position, None)
            return wave
        places = self._waiting.setdefault(position, {})
        places[piece] = self._write(wave)
        if len(places) <= len(item.row.cuts):
            return None
        return partial(self._joined, self._waiting.pop(position))

    def _write(self, wave: Samples) -> _Place:
        place = _Place(self._file.tell(), wave.nbytes)
        self._file.write(np.ascontiguousarray(wave).data)
        self._file.flush()  # readers go past its buffer
        return place

    def _joined(self, places: Mapping[Piece, _Place]) -> Samples:
        parts = sorted(places, key=lambda piece: piece.first)
        whole = np.empty(SAMPLES_PER_TOKEN * parts[-1].last, np.float32)
        # By numpy: torch would copy on threads of its own, which are the model's.
        at = 0
        for run in runs(parts, (torch.from_numpy(self._read(places[part])) for part in parts)):
            whole[at : at + len(run)] = run.numpy()
            at += len(run)
        return whole

    def _read(self, place: _Place) -> Samples:
        data = bytearray(os.pread(self._file.fileno(), place.size, place.offset))
        return np.frombuffer(data, np.float32)
