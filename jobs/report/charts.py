"""Charts in numbers: where bars and ticks are, in per cent of a picture of any size. The page draws them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from jobs.report.spread import Spread
from jobs.report.words import some

BARS = 40  # at most, of a histogram; of few values fewer, down to
FEWEST_BARS = 8
TICKS = 6  # at most, of an axis
OUTER = 0.002  # of all values at each end; beyond, they are counted in the last bar

QUANTILES = (("least", 0.0), ("5 %", 0.05), ("median", 0.5), ("95 %", 0.95), ("most", 1.0))

Values = npt.NDArray[np.float64]
Facts = Sequence[tuple[str, str]]  # name and value


@dataclass(frozen=True, slots=True)
class Bar:
    """One bar; left, width and height in per cent of the picture."""

    left: float
    width: float
    height: float
    label: str


@dataclass(frozen=True, slots=True)
class Tick:
    """A place on an axis, in per cent of it."""

    at: float
    label: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Chart:
    """A histogram, or a course of time in steps.

    Attributes:
        most: what the height of the picture stands for.
        facts: what it comes to.
    """

    title: str
    axis: str
    most: str
    bars: Sequence[Bar]
    ticks: Sequence[Tick]
    facts: Facts

    @property
    def summary(self) -> str:
        """For those who do not see it."""
        return f"{self.title}: " + ", ".join(f"{name} {value}" for name, value in self.facts)


def histogram(spread: Spread, *, title: str, axis: str, unit: Callable[[float], str], what: str) -> Chart | None:
    """How often each length, level or speed occurs; None when nothing was counted.

    Args:
        unit: a value as text.
        what: is counted, one of them: `row`.
    """
    if not spread.total:
        return None
    # In whole steps of the spread, and each bar as many of them: else bars would differ by what falls into them.
    places = round(spread.low / spread.step) + np.arange(len(spread.counts))
    low, high = (round(spread.quantile(share) / spread.step) for share in (OUTER, 1 - OUTER))
    most_bars = min(max(round(2 * math.sqrt(spread.total)), FEWEST_BARS), BARS)
    wide = math.ceil(nice_step(max(1.0, (high - low) / most_bars)))
    start = low // wide * wide
    bins = (high - start) // wide + 1
    there = places[spread.counts > 0]
    counts = np.bincount(np.clip((places - start) // wide, 0, bins - 1), weights=spread.counts, minlength=bins)
    edges = [spread.step * (start + wide * place) for place in range(bins + 1)]
    # Beyond a spread's last place values have one name.
    reach = [f"{left} to {right}" if left != right else left for left, right in pairwise(map(unit, edges))]
    if there[0] < start:
        reach[0] = f"up to {unit(edges[1])}"
    if there[-1] >= start + wide * bins:
        reach[-1] = f"{unit(edges[-2])} and more"
    bars = [
        Bar(
            left=100 * place / bins,
            width=100 / bins,
            height=100 * amount / counts.max(),
            label=f"{reach[place]}: {some(int(amount), what)}",
        )
        for place, amount in enumerate(counts.tolist())
        if amount
    ]
    facts = [(name, unit(spread.quantile(share))) for name, share in QUANTILES]
    top = some(int(counts.max()), what)
    return Chart(title=title, axis=axis, most=top, bars=bars, ticks=ticks(edges[0], edges[-1]), facts=facts)


def course(values: Values, span: float, *, title: str, axis: str, unit: Callable[[float], str], facts: Facts) -> Chart:
    """A quantity over time, by equal steps of it.

    Args:
        values: one of each step.
        span: what the axis is long, in its unit.
        unit: a value as text.
    """
    top = max(float(values.max()), 1e-9)
    width = 100 / len(values)
    bars = [
        Bar(left=place * width, width=width, height=100 * value / top, label=unit(value))
        for place, value in enumerate(values.tolist())
    ]
    return Chart(title=title, axis=axis, most=unit(top), bars=bars, ticks=ticks(0.0, span), facts=facts)


def ticks(low: float, high: float) -> list[Tick]:
    """Round numbers on an axis, with as many decimals as tell them apart."""
    if high <= low:
        return []
    step = nice_step((high - low) / TICKS)
    decimals = max(0, -math.floor(math.log10(step) + 1e-9))
    if step * 10**decimals % 1 > 1e-6:  # 0.25
        decimals += 1
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [
        Tick(100 * (place * step - low) / (high - low), f"{place * step:,.{decimals}f}".replace("-", "\N{MINUS SIGN}"))
        for place in range(first, last + 1)
    ]


def nice_step(least: float) -> float:
    """The smallest of 1, 2, 2.5 and 5 times a power of ten that is no less; 0 gives 0."""
    if least <= 0:
        return 0.0
    power = 10.0 ** math.floor(math.log10(least))
    return next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= least * (1 - 1e-9))
