"""The simulated job is the real queue and ledger at work, and its report says what it found."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from benchmarks import machine, plot, scale
from benchmarks.simulation import Cluster, MemoryStore, Simulation, useful_share
from jobs.ledger.ledger import Ledger
from jobs.manifest.manifest import Manifest
from jobs.plan import ShardSet, make_plan
from jobs.storage.folders import Folder


def started(folder: Path, shards: int) -> Ledger:
    path = folder / "manifest.parquet"
    columns = {"id": [""] * shards, "voice_id": [""] * shards, "tokens": pa.array([[1]] * shards)}
    pq.write_table(pa.table(columns), path)
    job: dict[str, Any] = {"config": {}, "fingerprints": {}, "versions": {}, "limit": None}
    return Ledger.start(Folder.of(MemoryStore(), "made-up://job"), job, make_plan(Manifest.scan(str(path)), 1))


def simulated(ledger: Ledger, cluster: Cluster, seed: int = 0, stop_after: float = np.inf) -> Simulation:
    intervals = np.full((len(ledger.plan), 2), np.nan)
    job = Simulation(ledger, cluster, ledger.committed(), intervals, seed)
    job.run(0.0, stop_after)
    return job


def test_a_job_without_deaths_makes_each_shard_once_and_keeps_its_workers_busy(tmp_path: Path) -> None:
    ledger = started(tmp_path, 3_000)
    job = simulated(ledger, Cluster(workers=10, deaths_per_hour=0))
    assert len(ledger.committed()) == 3_000
    assert (job.costs.commit_calls, job.costs.begun, job.costs.deaths) == (3_000, 3_000, 0)
    stop = float(np.nanmax(job.intervals[:, 1]))
    assert 3_000 * 60 / 10 < stop < 3_000 * 60 / 10 * 1.2  # the mean of a log-normal lies above its median
    assert useful_share(job.intervals, 10, 0, stop) > 0.95


def test_a_job_whose_workers_die_all_the_time_loses_no_shard(tmp_path: Path) -> None:
    ledger = started(tmp_path, 1_500)
    job = simulated(ledger, Cluster(workers=20, deaths_per_hour=6))
    assert job.costs.deaths > 50
    assert not job.schedule.given_up
    assert 1_500 < job.costs.begun < 1_500 + 3 * job.costs.deaths
    assert len(ledger.committed()) == 1_500
    assert [record.shard for record in ledger.records()] == list(range(1_500))
    assert not np.isnan(job.intervals).any()


def test_a_driver_that_is_killed_leaves_the_rest_to_the_next_one(tmp_path: Path) -> None:
    ledger = started(tmp_path, 300)
    first = simulated(ledger, Cluster(workers=10), stop_after=150)
    done = ledger.committed()
    assert 150 <= len(done) < 170  # some had landed without a report
    assert not first.schedule.finished
    second = simulated(ledger, Cluster(workers=10), seed=1)
    assert second.costs.commit_calls == 300 - len(done)
    assert ledger.committed() == ShardSet(300) | set(range(300))


def test_the_same_seed_is_the_same_job(tmp_path: Path) -> None:
    courses = []
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        (tmp_path / name).mkdir()
        job = simulated(started(tmp_path / name, 200), Cluster(workers=7, deaths_per_hour=5), seed)
        courses.append(job.intervals)
    assert np.array_equal(courses[0], courses[1])
    assert not np.array_equal(courses[0], courses[2])


def test_the_share_of_useful_work_is_that_of_a_small_case() -> None:
    intervals = np.array([[0.0, 10.0], [5.0, 20.0], [np.nan, np.nan]])
    assert useful_share(intervals, 2, 0, 20) == pytest.approx(25 / 40)
    assert useful_share(intervals, 2, 10, 20) == pytest.approx(10 / 20)


def test_a_store_in_memory_behaves_as_stores_do() -> None:
    folder = Folder.of(MemoryStore(), "made-up://x")
    assert folder.can_create()
    assert folder.create("a/b/1", b"one")
    assert not folder.create("a/b/1", b"two")
    folder.put("a/c", b"0123456789")
    folder.put("top", b"")
    assert folder.read("a/c", 2, 5) == b"234"
    assert (folder.size("a/c"), folder.exists("a/d")) == (10, False)
    assert folder.list() == ["a/b/1", "a/c", "top"]
    assert [folder.list(prefix) for prefix in ("a/", "a/b", "a/c", "t", "a/b/2")] == [
        *(["a/b/1", "a/c"], ["a/b/1"], ["a/c"], ["top"], []),
    ]
    folder.delete("a/b/1")
    folder.delete("a/b/1")
    with pytest.raises(FileNotFoundError):
        folder.read("a/b/1")


def test_a_report_that_cannot_be_drawn_or_judged(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    report = tmp_path / "scale.json"
    # That of this process tells what other tests have needed.
    monkeypatch.setattr(machine, "peak_resident_bytes", lambda: 10**9)
    # Too short a job for its tail, so one bar is missed, and said to be.
    options = [
        "--shards",
        "100",
        "--shard-rows",
        "100",
        "--workers",
        "50",
        "--finish-ranges",
        "1",
        "--finish-rows",
        "20",
    ]
    assert scale.main([*options, "--report", str(report)]) == 1
    found = json.loads(report.read_text())
    assert found["missed"] == ["tail_efficiency"]
    assert "Missed: tail_efficiency" in capsys.readouterr().out
    assert (found["run"]["lost"], found["job"]["rows"]) == (0, 10_000)
    assert found["end_tasks"]["rows"] == 20_000
    assert found["end_tasks"]["doubled"] == 1
    assert 0 < found["run"]["driver_ms_per_shard"] < 5
    assert plot.main([str(report), "--out", str(tmp_path / "scale.svg")]) == 0
    assert "shards, 50 workers" in (tmp_path / "scale.svg").read_text()
