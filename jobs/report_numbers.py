"""What the rows of a job add up to: counts by length, by level, by voice and by check.

One pass, frame after frame; what is kept does not grow with the number of rows.
"""

from __future__ import annotations

from collections import Counter

import numpy as np
import numpy.typing as npt
import pandas as pd

from jobs.checks import FLOOR_DB
from s3gen.constants import SAMPLES_PER_TOKEN, TOKEN_RATE

MAX_VOICES = 100_000  # that are told apart
LEVELS_PER_DB = 10
FOLD_ROWS = 200_000  # of parts, at least, before they are added up

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


class Voices:
    """Rows, samples, mean level and suspect rows of each voice, of the first ``MAX_VOICES`` that occur."""

    def __init__(self) -> None:
        self._table = pd.DataFrame(
            {"rows": pd.Series(dtype="int64"), "samples": pd.Series(dtype="int64"), "level": pd.Series(dtype="float64")}
            | {"suspect": pd.Series(dtype="int64")},
            index=pd.Index([], dtype=object),
        )
        self._parts: list[pd.DataFrame] = []
        self._waiting = 0
        self._beyond: Counter[str] = Counter()

    @property
    def beyond(self) -> Counter[str]:
        """Of all further voices together: ``rows`` and ``samples``."""
        self._fold()
        return self._beyond

    def add(self, frame: pd.DataFrame) -> None:
        """Takes rows in."""
        by_voice = frame.assign(suspect=frame["problems"] != "").groupby("voice_id", observed=True, sort=False)
        part = by_voice.agg(
            rows=("samples", "size"), samples=("samples", "sum"), level=("rms_db", "sum"), suspect=("suspect", "sum")
        )
        part.index = pd.Index(part.index.to_numpy(dtype=object))
        self._parts.append(part.astype({"level": "float64"}))
        self._waiting += len(part)
        if self._waiting > FOLD_ROWS + len(self._table):
            self._fold()

    def table(self) -> pd.DataFrame:
        """By voice id, most audio first: ``rows``, ``samples``, ``level`` (mean of the rows, dB), ``suspect``."""
        self._fold()
        table = self._table.sort_index().sort_values("samples", ascending=False, kind="stable")
        return table.assign(level=table["level"] / table["rows"])

    def _fold(self) -> None:
        # Unsorted, the groups are in the order in which they first occur.
        merged = pd.concat([self._table, *self._parts]).groupby(level=0, sort=False).sum()
        self._table, rest = merged.iloc[:MAX_VOICES], merged.iloc[MAX_VOICES:]
        self._beyond.update({name: int(rest[name].sum()) for name in ("rows", "samples")})
        self._parts, self._waiting = [], 0


class Numbers:
    """Everything that is counted of the rows.

    Attributes:
        lengths: of the audio, in seconds.
        levels: root mean squares, in dB of full scale.
        voices: by voice.
        problems: rows by the checks that they do not pass.
        suspect: rows that do not pass one or more.
    """

    def __init__(self) -> None:
        self.lengths = Spread(0.0, 1 / TOKEN_RATE)
        self.levels = Spread(FLOOR_DB, 1 / LEVELS_PER_DB)
        self.voices = Voices()
        self.problems: Counter[str] = Counter()
        self.suspect = 0
        self.rows = 0
        self.samples = 0

    def add(self, frame: pd.DataFrame) -> None:
        """Takes rows in."""
        samples = frame["samples"].to_numpy(np.int64)
        self.rows += len(frame)
        self.samples += int(samples.sum())
        self.lengths.add(samples // SAMPLES_PER_TOKEN)
        decibels = frame["rms_db"].to_numpy(np.float64)
        self.levels.add(((decibels - FLOOR_DB) * LEVELS_PER_DB).round().astype(np.int64))
        self.voices.add(frame)
        failed = frame.loc[frame["problems"] != "", "problems"]
        self.suspect += len(failed)
        for names, rows in failed.value_counts().items():
            self.problems.update(dict.fromkeys(str(names).split(","), int(rows)) if rows else {})
