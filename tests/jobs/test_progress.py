"""What a run shows."""

from __future__ import annotations

import io
import logging

import pytest
from rich.console import Console

from jobs.progress import ConsoleHandler, Meter, clock_time, showing


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_speed_and_eta_count_this_run_and_not_what_was_there(clock: Clock) -> None:
    meter = Meter(rows_total=100, rows_before=60, clock=clock)
    assert meter.text() == "60/100 rows, waiting for the first"
    clock.now += 10
    meter.add(done=8, failed=2, audio_seconds=50.0)
    assert meter.speed == pytest.approx(5.0)
    assert meter.eta_seconds == pytest.approx(30.0)
    assert meter.text() == "70/100 rows, 2 failed, 0:00:50 audio, 5.0 x real time, ETA 0:00:30"


def test_a_log_file_gets_a_line_now_and_then_and_not_one_per_shard(clock: Clock) -> None:
    stream = io.StringIO()
    meter = Meter(rows_total=1000, clock=clock)
    with showing(meter, Console(file=stream, width=20)) as changed:
        for _ in range(100):
            clock.now += 0.5
            meter.add(done=10, failed=0, audio_seconds=1.0)
            changed()
    lines = stream.getvalue().splitlines()
    assert 9 <= len(lines) <= 11
    assert all("rows" in line and "ETA" in line for line in lines)  # none is wrapped at the width


def test_a_terminal_gets_a_bar_that_log_lines_do_not_tear(clock: Clock) -> None:
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=True, width=120)
    record = logging.LogRecord("jobs", logging.WARNING, "", 0, "a worker died [3/4]", None, None)
    with showing(Meter(rows_total=10, clock=clock), console) as changed:
        changed()
        ConsoleHandler(console).emit(record)
    assert "warning: a worker died [3/4]" in stream.getvalue()
    assert "0/10 rows" in stream.getvalue()


def test_long_times_stay_readable() -> None:
    assert clock_time(3_723.4) == "1:02:03"
    assert clock_time(400_000) == "4 days, 15:06:40"
