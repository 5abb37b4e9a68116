"""What an output says about its job, before, while and after it runs."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from jobs.errors import InputError
from jobs.finish import finalise
from jobs.lease import Timing, is_live, read_lease
from jobs.ledger import Ledger
from jobs.plan import ShardSet
from jobs.status import _tally, status
from jobs.tally import Tally
from tests.jobs.made_job import bare_record, make, make_all, start, write_manifest


@pytest.fixture
def manifest(tmp_path: Path) -> str:
    return write_manifest(tmp_path / "in" / "manifest.parquet")


def test_a_job_from_its_start_to_its_end(place: str, manifest: str) -> None:
    ledger = start(place, manifest)
    begun = status(place)
    assert (begun.state, begun.shards_done, begun.shards_total, begun.rows_total) == ("stopped", 0, 4, 14)
    assert (begun.rows_done, begun.rows_failed, begun.audio_seconds, begun.speed) == (0, 0, 0.0, 0.0)
    assert begun.eta_seconds is None

    with ledger.lease():
        make(ledger, 0)
        make(ledger, 1)
        running = status(place)
        assert (running.state, running.shards_done, running.rows_done, running.rows_failed) == ("running", 2, 7, 1)
        assert running.audio_seconds > 0
        assert running.speed > 0
        # 6 rows are left, of the mean length of the 8 so far.
        assert running.eta_seconds == pytest.approx(6 / 8 * running.audio_seconds / running.speed)
    assert status(place).state == "stopped"

    make_all(ledger)
    before = status(place)
    assert (before.state, before.shards_done) == ("stopped", 4)  # all is made, but it is not finished
    finalise(ledger)
    finished = status(place)
    assert (finished.state, finished.rows_done, finished.rows_failed, finished.eta_seconds) == ("finished", 12, 2, 0.0)
    assert finished.audio_seconds == before.audio_seconds
    assert finished.speed == pytest.approx(before.speed)


def test_the_keys_are_those_of_the_contract(tmp_path: Path, manifest: str) -> None:
    start(str(tmp_path / "out"), manifest)
    values = json.loads(json.dumps(status(str(tmp_path / "out")).as_dict()))
    assert list(values) == [
        *("state", "shards_total", "shards_done", "rows_total", "rows_done", "rows_failed"),
        *("audio_seconds", "speed", "eta_seconds", "estimated"),
    ]


def test_an_output_without_a_job_is_bad_input(place: str) -> None:
    with pytest.raises(InputError, match="no job was begun here"):
        status(place)


def test_a_run_that_is_silent_for_half_a_minute_counts_as_stopped(tmp_path: Path, manifest: str) -> None:
    ledger = start(str(tmp_path / "out"), manifest)
    with ledger.lease(timing=Timing(beat=1e6)) as lease:
        state = read_lease(ledger.folder)
        assert is_live(state, Timing(wall=lambda: lease.state.beat_at + 29))
        assert not is_live(state, Timing(wall=lambda: lease.state.beat_at + 31))
        late = status(ledger.folder.url, timing=Timing(wall=lambda: lease.state.beat_at + 31))
        assert late.state == "stopped"


def test_many_shards_are_told_from_a_sample_of_their_records(
    place: str, manifest: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = start(place, manifest)
    for shard in (0, 1, 3):
        make(ledger, shard)
    exact = status(place)
    assert not exact.estimated
    monkeypatch.setattr("jobs.status.EXACT_RECORDS", 2)
    read: list[str] = []
    plain = Ledger.read_record
    monkeypatch.setattr(Ledger, "read_record", lambda self, shard, name: read.append(name) or plain(self, shard, name))
    found = status(place)
    assert found.estimated
    assert len(read) == 2
    # Shards 0 and 1 are the sample: 7 rows of 8 made; of 10 rows in the three shards.
    assert (found.shards_done, found.rows_done, found.rows_failed) == (3, 9, 1)
    records = [next(record for record in ledger.records() if record.shard == shard) for shard in (0, 1)]
    assert found.audio_seconds == pytest.approx(sum(record.samples for record in records) / 24_000 / 8 * 10)


@pytest.mark.parametrize(("workers", "pauses"), [(1, 0), (1, 2), (200, 1)])
def test_the_speed_of_a_sample_is_about_that_of_all(monkeypatch: pytest.MonkeyPatch, workers: int, pauses: int) -> None:
    """Of few workers most time lies between the shards of a sample; it is no pause, but a pause is one."""
    shards = 20_000
    starts = np.arange(shards) * 60.0 / workers
    for pause in range(pauses):
        starts[(pause + 1) * shards // 4 :] += 40 * 3600
    records = [
        bare_record(shard=n, rows=10, rows_done=10, samples=24_000 * 60, started_at=start, finished_at=start + 60)
        for n, start in enumerate(starts.tolist())
    ]
    done = ShardSet(shards)
    done.add(range(shards))
    ledger: Any = SimpleNamespace(read_some=lambda wanted: [records[n] for n in wanted])
    monkeypatch.setattr("jobs.status.EXACT_RECORDS", 500)
    sample = _tally(ledger, done)
    assert sample.shards == 500
    assert sample.speed * shards / 500 == pytest.approx(Tally.of(records).speed, rel=0.1)


@pytest.mark.parametrize(
    ("times", "busy"),
    [
        ([(0, 10)], 10),
        ([(0, 10), (0, 10)], 10),  # two workers at once
        ([(0, 10), (5, 15), (20, 22)], 17),  # a pause between two runs does not count
        ([(20, 22), (0, 30), (5, 6)], 30),
    ],
)
def test_speed_is_audio_per_second_in_which_something_was_in_work(times: list[tuple[int, int]], busy: int) -> None:
    records = [
        bare_record(shard=n, samples=24_000 * 60, started_at=1e9 + start, finished_at=1e9 + end)
        for n, (start, end) in enumerate(times)
    ]
    tally = Tally.of(records)
    assert tally.speed == pytest.approx(60 * len(times) / busy)
    assert tally.shards == len(times)
