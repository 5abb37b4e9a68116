"""The metrics of a run, as Prometheus finds them."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import pytest

from jobs.crew.sight import STATES, Sight
from jobs.metrics import COUNTERS, GAUGES, Metrics
from jobs.progress import Meter
from jobs.status import Status
from tests.jobs.ray_session import local_ray
from tests.jobs.reports import Clock, report
from tests.jobs.scrape import scraped

__all__ = ["local_ray"]


@pytest.mark.usefixtures("local_ray")
def test_prometheus_finds_other_numbers_than_the_run_shows() -> None:
    clock = Clock()
    meter = Meter(rows_total=10, clock=clock)
    metrics = Metrics(meter, "s3://bucket/speech")
    clock.now += 10
    reports = [
        report(rows_done=3, rows_failed=1, errors={"too_long": 1}, problems={"dc": 2}, seconds={"read": 1, "make": 9}),
        report(rows_done=1, padding=50, tries=3, seconds={"read": 0.5}),
    ]
    for each in reports:
        meter.take(each)
        metrics.take(each)
    metrics.look(
        [Sight(name="a:1", gpus=(), state="at work", seconds=1), Sight(name="b:1", gpus=(), state="lost", seconds=1)]
    )
    expected = {
        ("s3gen_shards_done", ""): 2,
        ("s3gen_rows_done", ""): 4,
        ("s3gen_rows_failed", "too_long"): 1,
        ("s3gen_rows_suspect", "dc"): 2,
        ("s3gen_audio_seconds", ""): 20,
        ("s3gen_retries", ""): 2,
        ("s3gen_stage_seconds", "read"): 1.5,
        ("s3gen_stage_seconds", "make"): 9,
        ("s3gen_progress", ""): 0.5,
        ("s3gen_speed", ""): 2,
        ("s3gen_padding_share", ""): 0.25,
        **{("s3gen_workers", state): 0 for state in ("waiting", "starting", "idle")},
        **{("s3gen_workers", state): 1 for state in ("at work", "lost")},
    }
    assert scraped("s3://bucket/speech", lambda found: len(found) == len(expected)) == expected


def test_a_number_is_told_that_the_documentation_lacks() -> None:
    text = (Path(__file__).parents[2] / "docs/formats.md").read_text(encoding="utf-8")
    names = {*COUNTERS, *GAUGES, *STATES, *(field.name for field in fields(Status))}
    assert not {name for name in names if f"`{name}`" not in text}
