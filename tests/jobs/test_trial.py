"""What a trial says of the whole job's speed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from jobs.config.config import JobConfig, config_from
from jobs.finish import finalise
from jobs.ledger.ledger import Ledger
from jobs.making import Outcome
from jobs.manifest.rows import Row
from jobs.storage.folders import Folder
from jobs.trial import trial_of
from tests.jobs.command import cli
from tests.jobs.inputs import write_config
from tests.jobs.made_job import job_of, plan_of, prepare, write_manifest
from tests.jobs.shown_job import with_measures


def _config(output: Path, **values: object) -> JobConfig:
    return config_from({"model": "m", "manifest": "m", "voices": "v", "output": str(output), **values})


def _begin(folder: Path, gpus: float) -> Ledger:
    output, manifest = str(folder / f"out-{gpus}"), write_manifest(folder / "m.parquet", 16)
    return Ledger.start(Folder(output), job_of(output, manifest) | {"gpus": gpus}, plan_of(manifest))


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return _begin(tmp_path, 0.0)


def _make(ledger: Ledger, shard: int, worker: str, began: float, ended: float) -> None:
    attempt, record = prepare(ledger, shard)
    done = replace(record, samples=24_000 * 10, worker=worker, started_at=began, finished_at=ended)
    ledger.commit(attempt, done)


def test_two_workers_pass_for_one_that_is_twice_as_fast(tmp_path: Path) -> None:
    # Two shards at a time in each worker's hands: its time counts once.
    work = [("a:1", 0, 8), ("b:1", 0, 9), ("a:1", 4, 10), ("b:1", 5, 10)]
    # Of a GPU for each two workers, both have a part.
    for gpus, expected in ((0.0, (40 / 20, 20, "worker")), (0.5, (4, 20, "GPU"))):
        ledger = _begin(tmp_path, gpus)
        for shard, (worker, began, ended) in enumerate(work):
            _make(ledger, shard, worker, began, ended)
        # Neither the device, which is auto, nor the cluster tells what it was.
        found = trial_of(_config(tmp_path, ray_address="head:6379", gpus_per_worker=0.5), ledger.folder.url)
        assert found is not None
        assert (found.speed, found.seconds, found.unit) == expected
        assert found.is_short


def test_a_worker_alone_on_a_gpu_passes_for_half_of_it(tmp_path: Path) -> None:
    ledger = _begin(tmp_path, 0.5)
    _make(ledger, 0, "a:1", 0, 10)
    config = _config(tmp_path, gpus_per_worker=0.5)
    alone = trial_of(config, ledger.folder.url)
    assert alone is not None
    assert alone.speed == 1
    double = trial_of(config.model_copy(update={"gpus_per_worker": 2.0}), ledger.folder.url)
    assert double is not None
    assert double.speed == 0.5


def test_a_pause_between_two_runs_passes_for_work(ledger: Ledger, tmp_path: Path) -> None:
    for shard, began in enumerate((0, 50, 9_000, 9_050)):
        _make(ledger, shard, "a:1", began, began + 50)
    found = trial_of(_config(tmp_path), ledger.folder.url)
    assert found is not None
    assert (found.speed, found.seconds, found.is_short) == (40 / 200, 200, False)


def test_a_trial_in_which_no_row_was_made_has_a_speed(ledger: Ledger, tmp_path: Path) -> None:
    for shard in range(4):
        attempt, record = prepare(ledger, shard)
        ledger.commit(attempt, replace(record, samples=0))
    assert trial_of(_config(tmp_path), ledger.folder.url) is None


@pytest.mark.parametrize(
    "worse", [{}, {"u3": "bad_audio", "u6": "not_finite", "u7": "unknown_voice", "u12": "wrong_length"}]
)
def test_silence_that_is_trimmed_or_rows_found_unfit_pass_for_no_work(tmp_path: Path, worse: dict[str, str]) -> None:
    """A plan bills the audio of all rows, as long as their tokens ask for."""
    wave = {"trim_db": 40.0, "sample_rate": 8_000, "trailing_silence_tokens": 5}
    output, manifest = str(tmp_path / "out"), write_manifest(tmp_path / "m.parquet", 16)
    ledger = Ledger.start(Folder(output), job_of(output, manifest, wave=wave) | {"gpus": 0}, plan_of(manifest))
    made: dict[str, int] = {}  # tokens

    def trouble(row: Row) -> str | None:
        code = worse.get(row.id)
        made[row.id] = 0 if code == "unknown_voice" else len(row.tokens)
        return code

    for shard in range(len(ledger.plan)):
        attempt, record = prepare(ledger, shard, trouble=trouble)
        for row in range(record.rows_done):  # a half is left of each: 160 of 320 samples for each of its tokens
            assert record.index is not None
            tokens = pq.read_table(Path(output) / record.index.name)["samples"][row].as_py() // 960
            trimmed = {"trimmed_start": 100 * tokens, "trimmed_end": 60 * tokens, "problems": ""}
            record = with_measures(ledger, record, row, trimmed)
        times = {"started_at": 5.0 * shard, "finished_at": 5.0 * shard + 5}
        ledger.commit(attempt, replace(record, worker="a:1", samples=record.samples // 2, **times))
    found = trial_of(_config(tmp_path, wave=wave), output)
    assert found is not None
    assert len(made) == 14  # the manifest's others are no rows to begin with
    assert found.speed == pytest.approx(sum(made.values()) / 25 / (5 * len(ledger.plan)))


def _suggested(ledger: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *options: str, **values: Any) -> str:
    """The line for a plan at the end of a trial at twice real time."""
    for shard in range(len(ledger.plan)):
        _make(ledger, shard, "a:1", 5 * shard, 5 * shard + 5)
    summary = finalise(ledger)
    outcome = Outcome(output=ledger.folder.url, model="m", summary=summary, made_shards=4)
    monkeypatch.setattr("jobs.runs.synth", lambda *arguments: outcome)
    config = write_config(tmp_path / "job.yaml", manifest="m", voices="v", output="o", **values)
    line = cli("synth", config, "--limit", "16", *options).stdout.splitlines()[-1]
    return line.replace(str(tmp_path), "").removeprefix("what the whole job would take: ")


def test_a_trial_on_the_cpus_of_a_cluster_is_billed_as_gpus(
    ledger: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = _suggested(ledger, tmp_path, monkeypatch, "--set", "seed=3", ray_address="head:6379")
    assert said == "s3gen plan /job.yaml --set seed=3 --speed 2 --set engine.device=cpu"


def test_a_trial_on_a_cluster_names_a_file_that_only_the_cluster_has(
    ledger: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("S3GEN_PLAN", "s3gen plan 'my job.yaml'")
    said = _suggested(ledger, tmp_path, monkeypatch, engine={"device": "cpu"})
    assert said == "s3gen plan 'my job.yaml' --speed 2"
