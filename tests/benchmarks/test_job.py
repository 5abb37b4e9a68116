"""The job beside the bare engine: both make the same, and the report says what each took."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import job
from jobs.worker.worker import Worker

ARGUMENTS = ["--device", "cpu", "--model", "random:tiny", "--threads", "1", "--tokens", "9", "5", "4", "3", "8"]
SMALL = ["--shard-rows", "2", "--prompt-seconds", "0.6", "0.8", "--voices", "2", "--rounds", "2"]


def test_report_lacks_a_figure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "report.json"
    assert job.main([*ARGUMENTS, *SMALL, "--report", str(path), "--folder", str(tmp_path)]) in (0, 1)
    found = json.loads(path.read_text())
    assert found["workload"]["rows"] == 5
    assert found["workload"]["shards"] == 3
    assert found["workload"]["audio_seconds"] == pytest.approx(29 / 25)
    for figures in found["contenders"].values():
        assert set(figures["audio_seconds_per_second"]) == {"median", "min", "max"}
        assert figures["cpu_seconds_per_audio_second"]["min"] > 0
    assert 0 < found["ratio"]["min"] <= found["ratio"]["median"] <= found["ratio"]["max"]
    printed = capsys.readouterr().out
    assert "| the bare engine |" in printed
    assert "| the job |" in printed
    assert [entry.name for entry in tmp_path.iterdir()] == ["report.json"], "temporary files are left"


def test_a_job_that_drops_rows_looks_fast(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = Worker._read

    def fewer(self: Worker, shard: int) -> object:
        work = original(self, shard)
        del work.items[:]
        return work

    monkeypatch.setattr(Worker, "_read", fewer)
    with pytest.raises(ValueError, match="rows"):
        job.main([*ARGUMENTS, *SMALL, "--folder", str(tmp_path)])


def test_a_mean_flow_without_a_name_reaches_a_worker(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        job.main([*ARGUMENTS, "--meanflow", "--ray"])
    assert "--ray" in capsys.readouterr().err
