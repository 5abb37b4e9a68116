"""The measures by which people choose utterances, over a whole job: loudness, noise, speaking rate, opinions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd

from jobs.measures.loudness import SILENT
from jobs.measures.opinion import BEST, LEAST
from jobs.measures.snr import HIGHEST, LOWEST
from jobs.report.charts import Chart, histogram
from jobs.report.spread import Spread
from jobs.report.words import decibels, lufs

MOST_LETTERS = 100.0  # a second, that are told apart: nobody speaks as fast, but audio that is cut off has any number


@dataclass(frozen=True, kw_only=True, slots=True)
class Quality:
    """A measure of the index; null where there is none.

    Attributes:
        name: for the heading of a column.
        lowest, highest: what the rows at the ends are called; empty where that end is no matter.
        low, step, high: places in which values are counted; what is beyond counts as the last.
    """

    column: str
    title: str
    name: str
    axis: str
    digits: int  # behind the point, where a heading has the unit
    unit: Callable[[float], str]
    lowest: str
    highest: str
    low: float
    step: float
    high: float


QUALITIES = (
    Quality(
        column="loudness",
        title="Loudness",
        name="loudness, LUFS",
        axis="integrated loudness, LUFS",
        digits=1,
        unit=lufs,
        lowest="quietest",
        highest="loudest",
        low=SILENT,
        step=0.1,
        high=5.0,
    ),
    Quality(
        column="snr",
        title="Signal to noise",
        name="SNR, dB",
        axis="estimate of the signal-to-noise ratio, dB",
        digits=1,
        unit=decibels,
        lowest="noisiest",
        highest="",
        low=LOWEST,
        step=0.5,
        high=HIGHEST,
    ),
    Quality(
        column="letters_per_second",
        title="Speaking rate",
        name="letters/s",
        axis="letters and digits per second",
        digits=1,
        unit=lambda value: f"{value:.1f}" if value < MOST_LETTERS else f"{MOST_LETTERS:.0f} or more",
        lowest="slowest",
        highest="fastest",
        low=0.0,
        step=0.1,
        high=MOST_LETTERS,
    ),
    Quality(
        column="dnsmos_ovr",
        title="Opinion",
        name="DNSMOS",
        axis="DNSMOS P.835, of the whole, 1 to 5",
        digits=2,
        unit="{:.2f}".format,
        lowest="worst by DNSMOS",
        highest="",
        low=LEAST,
        step=0.01,
        high=BEST,
    ),
)
COLUMNS = tuple(quality.column for quality in QUALITIES)


class Qualities:
    """How often each value of each measure occurs.

    Attributes:
        spreads: by column.
    """

    def __init__(self) -> None:
        self.spreads = {quality.column: Spread(quality.low, quality.step) for quality in QUALITIES}

    def add(self, frame: pd.DataFrame) -> None:
        """Takes rows in."""
        for quality in QUALITIES:
            values = frame[quality.column].dropna().to_numpy(np.float64).clip(quality.low, quality.high)
            self.spreads[quality.column].add(((values - quality.low) / quality.step).round().astype(np.int64))

    def there(self) -> list[Quality]:
        """Those that some row has."""
        return [quality for quality in QUALITIES if self.spreads[quality.column].total]

    def histograms(self) -> list[Chart]:
        """Of each of these."""
        charts = (
            histogram(
                self.spreads[quality.column], title=quality.title, axis=quality.axis, unit=quality.unit, what="row"
            )
            for quality in QUALITIES
        )
        return [chart for chart in charts if chart is not None]
