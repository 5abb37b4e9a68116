"""What a run has done, in numbers and words."""

from __future__ import annotations

import pytest

from jobs.progress import Meter, clock_time, listed
from tests.jobs.reports import Clock, report


def test_speed_and_eta_count_this_run_and_not_what_was_there() -> None:
    clock = Clock()
    meter = Meter(rows_total=100, rows_before=60, clock=clock)
    assert meter.text() == "60/100 rows, waiting for the first"
    clock.now += 10
    meter.add(done=8, failed=2, audio_seconds=50.0)
    assert meter.speed == pytest.approx(5.0)
    assert meter.eta_seconds == pytest.approx(30.0)
    assert meter.text() == "70/100 rows, 2 failed, 0:00:50 of audio, 5.0 x real time, ETA 0:00:30"


def test_long_times_stay_readable() -> None:
    assert clock_time(3_723.4) == "1:02:03"
    assert clock_time(400_000) == "4 days, 15:06:40"


def test_the_time_left_is_told_from_hours_of_loading_models() -> None:
    clock = Clock()
    meter = Meter(rows_total=100, clock=clock)
    clock.now += 1_000
    meter.take(report(rows_done=10, samples=24_000 * 40, seconds={"read": 1, "make": 8, "publish": 1}))
    assert (meter.speed, meter.eta_seconds) == (4.0, 90.0)


def test_workers_that_joined_late_leave_the_time_left_as_it_was() -> None:
    clock = Clock()
    meter = Meter(rows_total=100_000, clock=clock)
    for seconds, shards in ((60.0, 600), (1.0, 900)):  # a shard a minute for ten hours, then one a second
        for _ in range(shards):
            clock.now += seconds
            meter.add(done=10, failed=0, audio_seconds=50.0)
    assert meter.speed == pytest.approx(50, rel=0.05)
    assert meter.eta_seconds == pytest.approx((meter.rows_total - meter.rows) / 10, rel=0.05)


def test_shards_that_take_an_hour_have_no_speed() -> None:
    clock = Clock()
    meter = Meter(rows_total=1_000, clock=clock)
    for _ in range(100):
        clock.now += 3_600
        meter.add(done=1, failed=0, audio_seconds=7_200)
        assert meter.speed == pytest.approx(2.0)
    clock.now += 3_000
    assert meter.eta_seconds is not None
    assert meter.eta_seconds / 900 == pytest.approx(3_600, rel=0.05)


def test_what_is_told_of_shards_is_not_added_up() -> None:
    clock = Clock()
    meter = Meter(rows_total=100, clock=clock)
    clock.now += 10
    meter.take(report(rows_done=3, rows_failed=2, errors={"too_long": 2}, problems={"dc": 1}, padding=20, worker="a:1"))
    meter.take(report(rows_done=4, rows_failed=1, errors={"null_id": 1}, problems={"dc": 2}, padding=5, worker="b:1"))
    meter.take(report(rows_done=5, tries=3, worker="a:1"))
    assert (meter.rows, meter.failed, meter.retries) == (15, 3, 2)
    assert (meter.errors, meter.problems) == ({"too_long": 2, "null_id": 1}, {"dc": 3})
    assert meter.by_worker == {"a:1": 20.0, "b:1": 10.0}
    assert meter.padding_share == pytest.approx(25 / 300)
    failed = "3 failed (too_long 2, null_id 1)"
    assert meter.text() == f"15/100 rows, {failed}, 0:00:30 of audio, 3.0 x real time, 8% padding, ETA 0:00:57"


def test_a_job_that_was_done_before_divides_by_nothing() -> None:
    meter = Meter(rows_total=0)
    assert (meter.progress, meter.padding_share, meter.eta_seconds) == (1.0, 0.0, None)


def test_a_rare_reason_hides_a_frequent_one() -> None:
    found = {"a": 1, "b": 7, "c": 1, "d": 5}
    assert listed(found, 2) == "b 7, d 5 and 2 more kinds"
    assert listed(found, 4) == "b 7, d 5, a 1, c 1"
    assert listed({}, 2) == ""
