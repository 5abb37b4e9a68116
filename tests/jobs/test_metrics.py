"""The metrics of a run, as Prometheus finds them."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import pytest

from jobs.crew.sight import STATES, Sight
from jobs.metrics import COUNTERS, GAUGES, Metrics
from jobs.progress import Meter
from jobs.status import Status
from tests.jobs.ray_session import local_ray
from tests.jobs.reports import Clock, report
from tests.jobs.scrape import Samples, scraped

__all__ = ["local_ray"]


OUTPUT = "s3://bucket/speech"
COUNTED = {
    ("s3gen_shards_done", ""): 2,
    ("s3gen_rows_done", ""): 4,
    ("s3gen_rows_failed", "too_long"): 1,
    ("s3gen_rows_suspect", "dc"): 2,
    ("s3gen_audio_seconds", ""): 20,
    ("s3gen_retries", ""): 2,
    ("s3gen_stage_seconds", "read"): 1.5,
    ("s3gen_stage_seconds", "make"): 9,
}
SHOWN = {
    ("s3gen_progress", ""): 0.5,
    ("s3gen_speed", ""): 2,
    ("s3gen_padding_share", ""): 0.25,
    **{("s3gen_workers", state): 0 for state in ("waiting", "starting", "idle")},
    **{("s3gen_workers", state): 1 for state in ("at work", "lost")},
}


def _run() -> None:
    """Tells of a run with these numbers."""
    clock = Clock()
    meter = Meter(rows_total=10, clock=clock)
    metrics = Metrics(meter, OUTPUT)
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


class _Told:
    """A metric of Ray's that keeps what it is told."""

    numbers: ClassVar[Samples] = {}

    def __init__(self, name: str, text: str, labels: tuple[str, ...]) -> None:
        self._name, self._labels = name, labels

    def set(self, value: float, tags: dict[str, str]) -> None:
        assert (set(tags), tags["output"]) == (set(self._labels), OUTPUT)
        self.numbers[self._name, "".join(kind for label, kind in tags.items() if label != "output")] = value

    def inc(self, value: float, tags: dict[str, str]) -> None:
        kind = "".join(kind for label, kind in tags.items() if label != "output")
        self.set(self.numbers.get((self._name, kind), 0) + value, tags)


def test_other_numbers_are_told_than_the_run_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_Told, "numbers", {})
    monkeypatch.setattr("jobs.metrics.metrics", SimpleNamespace(Counter=_Told, Gauge=_Told))
    _run()
    assert _Told.numbers == COUNTED | SHOWN


@pytest.mark.usefixtures("local_ray")
def test_prometheus_does_not_find_what_is_told() -> None:
    _run()
    found = scraped(OUTPUT, lambda found: found == COUNTED | SHOWN)
    assert found.keys() == COUNTED.keys() | SHOWN.keys()
    assert {name: found[name] for name in SHOWN} == SHOWN
    # Of counts Ray's processes pass on what has come since the last time, and on a busy machine some of it is lost.
    assert not {name: count for name, count in COUNTED.items() if not 0 < found[name] <= count}


def test_a_number_is_told_that_the_documentation_lacks() -> None:
    text = (Path(__file__).parents[2] / "docs/formats.md").read_text(encoding="utf-8")
    names = {*COUNTERS, *GAUGES, *STATES, *(field.name for field in fields(Status))}
    assert not {name for name in names if f"`{name}`" not in text}
