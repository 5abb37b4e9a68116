"""What the rows of a job add up to: counts by length, by level, by voice and by check.

One pass, frame after frame; what is kept does not grow with the number of rows.
"""

from __future__ import annotations

from collections import Counter

import numpy as np
import pandas as pd

from jobs.report.quality import COLUMNS, Qualities
from jobs.report.spread import Spread
from s3gen.constants import SAMPLES_PER_TOKEN, TOKEN_RATE

MAX_VOICES = 100_000  # that are told apart
FOLD_ROWS = 200_000  # of parts, at least, before they are added up


class Voices:
    """Rows, samples, suspect rows and mean qualities of each voice, of the first ``MAX_VOICES`` that occur."""

    def __init__(self) -> None:
        whole = dict.fromkeys(("rows", "samples", "suspect", *map(_rated, COLUMNS)), pd.Series(dtype="int64"))
        sums = dict.fromkeys(COLUMNS, pd.Series(dtype="float64"))
        self._table = pd.DataFrame({**whole, **sums}, index=pd.Index([], dtype=object))
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
        wide = frame.assign(
            suspect=frame["problems"] != "", **{name: frame[name].astype("float64") for name in COLUMNS}
        )
        part = wide.groupby("voice_id", observed=True, sort=False).agg(
            rows=("samples", "size"),
            samples=("samples", "sum"),
            suspect=("suspect", "sum"),
            **{_rated(name): (name, "count") for name in COLUMNS},
            **{name: (name, "sum") for name in COLUMNS},
        )
        part.index = pd.Index(part.index.to_numpy(dtype=object))
        self._parts.append(part)
        self._waiting += len(part)
        if self._waiting > FOLD_ROWS + len(self._table):
            self._fold()

    def table(self) -> pd.DataFrame:
        """By voice id, most audio first: ``rows``, ``samples``, ``suspect``, and of each quality the mean of the rows
        that have it, NaN where none has."""
        self._fold()
        table = self._table.sort_index().sort_values("samples", ascending=False, kind="stable")
        # Of no rows it is 0 / 0, which is NaN here.
        return table.assign(**{name: table[name] / table[_rated(name)] for name in COLUMNS})

    def _fold(self) -> None:
        # Unsorted, the groups are in the order in which they first occur.
        merged = pd.concat([self._table, *self._parts]).groupby(level=0, sort=False).sum()
        self._table, rest = merged.iloc[:MAX_VOICES], merged.iloc[MAX_VOICES:]
        self._beyond.update({name: int(rest[name].sum()) for name in ("rows", "samples")})
        self._parts, self._waiting = [], 0


def _rated(name: str) -> str:
    """Column for the rows that have a quality."""
    return f"rows with {name}"


class Numbers:
    """Everything that is counted of the rows.

    Attributes:
        lengths: of the audio, in seconds.
        qualities: loudness, noise, rate and opinions.
        voices: by voice.
        problems: rows by the checks that they do not pass.
        suspect: rows that do not pass one or more.
        joined: rows that were made in pieces.
    """

    def __init__(self) -> None:
        self.lengths = Spread(0.0, 1 / TOKEN_RATE)
        self.qualities = Qualities()
        self.voices = Voices()
        self.problems: Counter[str] = Counter()
        self.suspect = 0
        self.joined = 0
        self.rows = 0
        self.samples = 0

    def add(self, frame: pd.DataFrame) -> None:
        """Takes rows in."""
        samples = frame["samples"].to_numpy(np.int64)
        self.rows += len(frame)
        self.samples += int(samples.sum())
        self.joined += int((frame["joints"] > 0).sum())
        self.lengths.add(samples // SAMPLES_PER_TOKEN)
        self.qualities.add(frame)
        self.voices.add(frame)
        failed = frame.loc[frame["problems"] != "", "problems"]
        self.suspect += len(failed)
        for names, rows in failed.value_counts().items():
            self.problems.update(dict.fromkeys(str(names).split(","), int(rows)) if rows else {})
