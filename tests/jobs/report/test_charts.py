"""Bars, ticks and steps of the charts of a report."""

from __future__ import annotations

import re

import numpy as np
import pytest

from jobs.report.charts import BARS, histogram, nice_step, ticks
from jobs.report.numbers import Numbers
from jobs.report.spread import Spread
from jobs.report.words import length
from tests.jobs.report.test_parts import frame


def spread_of(values: list[int]) -> Spread:
    spread = Spread(0.0, 0.04)
    spread.add(np.array(values))
    return spread


def test_even_lengths_look_even() -> None:
    """Bars of six and of seven values by turns would show a comb that is not there."""
    chart = histogram(spread_of(list(range(1, 1_501)) * 3), title="t", axis="a", unit=length, what="row")
    assert chart is not None
    assert 20 <= len(chart.bars) <= BARS + 1
    inner = [bar.height for bar in chart.bars[1:-1]]
    assert max(inner) == pytest.approx(min(inner))
    assert chart.bars[-1].left + chart.bars[-1].width == pytest.approx(100)


def test_a_few_long_rows_do_not_press_all_others_into_one_bar() -> None:
    values = [3, *range(50, 150), 1_500] + [*range(50, 150)] * 19
    chart = histogram(spread_of(values), title="t", axis="a", unit=length, what="row")
    assert chart is not None
    assert len(chart.bars) > 20
    assert (chart.bars[0].label, chart.bars[-1].label) == ("up to 2.0 s: 21 rows", "5.9 s and more: 61 rows")
    assert chart.facts[-1] == ("most", "60.0 s")
    assert sum(int(label.replace(",", "")) for label in re.findall(r": ([\d,]+) rows?", str(chart.bars))) == 2_002


@pytest.mark.parametrize("values", [[5], [5, 5, 5], [0], [1, 1_500]])
def test_histograms_of_next_to_nothing(values: list[int]) -> None:
    chart = histogram(spread_of(values), title="t", axis="a", unit=length, what="row")
    assert chart is not None
    assert max(bar.height for bar in chart.bars) == 100
    assert not any("up to" in bar.label or "and more" in bar.label for bar in chart.bars)  # nothing is beyond
    assert histogram(Spread(0.0, 1.0), title="t", axis="a", unit=length, what="row") is None


@pytest.mark.parametrize("rates", [[12.0, 15.0, 262.5, 300.0], [100.0, 300.0], [99.9, 100.0], [*[50.0] * 900, 300.0]])
def test_rows_that_are_cut_off_speak_at_a_hundred_letters_a_second(rates: list[float]) -> None:
    numbers = Numbers()
    numbers.add(frame(len(rates), 1).assign(letters_per_second=rates))
    (chart,) = (each for each in numbers.qualities.histograms() if each.title == "Speaking rate")
    assert dict(chart.facts)["most"] == "100 or more"
    assert dict(chart.facts)["least"] == ("100 or more" if min(rates) >= 100 else f"{min(rates):.1f}")
    labels = [bar.label for bar in chart.bars]
    assert all(label.count("or more") < 2 and "101" not in label for label in labels)
    assert "or more" in labels[-1] or "and more" in labels[-1]


@pytest.mark.parametrize(("low", "high"), [(0, 1), (0.3, 0.31), (-34.5, -33.5), (0, 123_456), (2, 17)])
def test_ticks_are_round_few_and_different(low: float, high: float) -> None:
    found = ticks(low, high)
    assert 3 <= len(found) <= 8
    assert len({tick.label for tick in found}) == len(found)
    assert all(0 <= tick.at <= 100 for tick in found)
    assert [tick.at for tick in found] == sorted(tick.at for tick in found)


def test_steps() -> None:
    assert [nice_step(value) for value in (0, 0.011, 1, 1.2, 2.3, 30, 6_000)] == [0, 0.02, 1, 2, 2.5, 50, 10_000]
