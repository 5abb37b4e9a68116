"""What a job will take, as `s3gen plan` says it before anything is begun."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pytest
import torch

from jobs.audio.audiofile import encode
from jobs.config.config import config_from
from jobs.engine.batch import Batch, Item
from jobs.errors import JobError
from jobs.estimate.budget import Calibration
from jobs.estimate.disk import disk_bytes
from jobs.estimate.speed import Gauge
from jobs.formats.formats import FORMATS
from jobs.formats.writers import Sound
from jobs.manifest.rows import Row
from jobs.voices.table import VoiceTable
from s3gen import S3GenModel
from s3gen.constants import SAMPLES_PER_TOKEN
from s3gen.flow import Flow
from tests.jobs.command import cli
from tests.jobs.inputs import good_rows, write_config, write_manifest


@pytest.fixture
def job(table: Path, tmp_path: Path) -> dict[str, Any]:
    """A configuration with which all is well."""
    manifest = write_manifest(tmp_path / "manifest.parquet", good_rows(6))
    return {"manifest": str(manifest), "voices": str(table), "output": str(tmp_path / "out"), "shard_rows": 2}


def test_plan_counts_writes_nothing_and_invents_no_speed(job: dict[str, Any], tmp_path: Path) -> None:
    columns = good_rows(6)
    columns["tokens"] = [[1] * 90, [1] * 90, [2] * 45, [2] * 90, None, [9]]
    columns["voice_id"] = ["anna"] * 5 + ["nobody"]
    write_manifest(tmp_path / "manifest.parquet", columns)
    config = write_config(tmp_path / "job.yaml", **job)
    before = sorted(tmp_path.iterdir())
    result = cli("plan", config, "--json")
    assert result.exit_code == 0
    found = json.loads(result.stdout)
    # A prompt of 0.6 s is 15 tokens: three rows of 105 tokens and one of 60 lie end to end but for two frames after
    # each. The encoder takes two and two of them, the vocoder each alone.
    expected = {"flow": 8 / (2 * 375 + 8), "encoder": 45 / 420, "vocoder": 0}
    assert found["padding"] == pytest.approx(expected)
    assert found["rows"] == found["sampled_rows"] == 6
    assert found["sampled_failures"] == {"null_tokens": 1, "unknown_voice": 1}
    assert found["audio_hours"] == pytest.approx(315 / 25 / 3600)
    assert found["gpu_hours"] is None
    text = cli("plan", config, "--speed", "50", "--set", "engine.device=cuda").stdout
    assert f"GPU-hours: {315 / 25 / 3600 / 50:.4g}" in text
    assert sorted(tmp_path.iterdir()) == before


def test_audio_that_will_be_trimmed_passes_for_what_is_stored(job: dict[str, Any], tmp_path: Path) -> None:
    config = write_config(tmp_path / "job.yaml", **job)
    assert "trimming" not in cli("plan", config).stdout
    text = cli("plan", config, "--set", "wave.trim_db=40").stdout
    assert "hours before trimming" in text
    assert "disk before trimming, about:" in text


def test_plan_measures_a_gpu_or_hides_that_it_did_not(job: dict[str, Any], tmp_path: Path) -> None:
    def planned(**values: Any) -> tuple[int, bool, str]:
        config = write_config(tmp_path / "job.yaml", **job, **values)
        found = json.loads(cli("plan", config, "--json").stdout)
        return found["max_frames"], found["max_frames_assumed"], cli("plan", config).stdout

    *guess, text = planned(engine={"device": "cuda"})
    assert guess == [32_768, True]
    assert "with batch.max_frames auto the job finds its number when it begins" in text
    *given, text = planned(engine={"device": "cuda"}, batch={"max_frames": 5_000})
    assert given == [5_000, False]
    assert "auto" not in text
    assert planned(engine={"device": "cpu"})[:2] == (8_192, False)
    assert planned(ray_address="head:6379")[:2] == (32_768, True)


def test_plan_loads_ray_or_a_model(job: dict[str, Any], tmp_path: Path) -> None:
    config = write_config(tmp_path / "job.yaml", **(job | {"model": str(tmp_path / "nowhere")}))
    code = f"import sys; from jobs.cli import main; main(['plan', {str(config)!r}], standalone_mode=False)"
    run = subprocess.run([sys.executable, "-X", "importtime", "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.startswith("rows: 6 in 3 shards")
    assert not re.search(r"\| +ray$", run.stderr, re.MULTILINE)
    assert re.search(r"\| +jobs\.estimate$", run.stderr, re.MULTILINE)


def test_a_limit_is_part_of_the_plan(job: dict[str, Any], tmp_path: Path) -> None:
    found = json.loads(cli("plan", write_config(tmp_path / "job.yaml", **job), "--limit", "3", "--json").stdout)
    assert (found["rows"], found["shards"]) == (3, 2)


def test_the_sample_hides_what_is_wrong_with_its_rows(job: dict[str, Any], tmp_path: Path) -> None:
    columns = good_rows(6)
    columns["tokens"][2], columns["voice_id"][4] = [9_999], "no\x1b[31mbody"
    write_manifest(tmp_path / "manifest.parquet", columns)
    text = cli("plan", write_config(tmp_path / "job.yaml", **job)).stdout
    assert "rows that will fail: 2" in text
    assert "token_out_of_range: 1, such as 'row-0002': token 9999 at place 0" in text
    assert r"unknown_voice: 1, such as 'row-0004': the voice table has no voice 'no\x1b[31mbody'" in text
    assert "\x1b" not in text


def test_voices_and_lengths_of_the_sample_are_those_of_rows_that_fail(job: dict[str, Any], tmp_path: Path) -> None:
    columns = good_rows(5)
    columns["tokens"] = [[1] * 25, [1] * 50, [1] * 100, [1] * 9_000, [1] * 75]
    columns["voice_id"] = ["anna", "bert", "anna", "de/carl.2", "nobody"]
    write_manifest(tmp_path / "manifest.parquet", columns)
    config = write_config(tmp_path / "job.yaml", **(job | {"shard_rows": 5}))
    found = json.loads(cli("plan", config, "--json").stdout)
    # The three voices that the table has, though only two can be made.
    assert (found["voices"], found["sampled_voices"]) == (3, 2)
    assert found["row_seconds"] == [1, 2, 4]
    assert found["prompt_share"] == pytest.approx(45 / (45 + 175))
    assert "rows of 1.0 to 4.0 s, half of them above 2.0" in cli("plan", config).stdout
    cut = cli("plan", config, "--set", "engine.prompt_seconds=0.2", "--json").stdout
    assert json.loads(cut)["prompt_share"] == pytest.approx(15 / (15 + 175))


def test_a_job_without_a_good_row_has_no_plan(job: dict[str, Any], tmp_path: Path) -> None:
    write_manifest(tmp_path / "manifest.parquet", good_rows(3) | {"voice_id": ["nobody"] * 3})
    config = write_config(tmp_path / "job.yaml", **job)
    result = cli("plan", config)
    assert result.exit_code == 0
    assert "unknown_voice: 3" in result.stdout
    calibrated = cli("plan", config, "--calibrate")
    assert calibrated.exit_code == 1
    assert calibrated.stderr.endswith(
        "error: --calibrate: no row of the sample can be made; without it, plan says why\n"
    )


@pytest.mark.parametrize(
    ("changes", "speed", "price", "expected"),
    [
        # gpu_hours, gpus, hours, cost; of 1,000 hours of audio
        ({"workers": 8, "ray_address": "head:6379"}, 250, 3, (4, 8, 0.5, 12)),
        ({"workers": 8, "gpus_per_worker": 0.5, "ray_address": "head:6379"}, 250, None, (4, 4, 1, None)),
        ({"workers": "auto", "ray_address": "head:6379"}, 250, 3, (4, None, None, 12)),
        # Without GPUs a worker is what is paid for.
        ({"workers": 2, "gpus_per_worker": 0.5, "engine": {"device": "cpu"}}, 0.5, 0.1, (2_000, 2, 1_000, 200)),
        ({"workers": 3}, None, None, (None, 3, None, None)),
    ],
)
def test_the_bill_is_for_other_gpus_than_the_job_has(
    job: dict[str, Any],
    tmp_path: Path,
    changes: dict[str, Any],
    speed: float | None,
    price: float | None,
    expected: tuple[float | None, ...],
) -> None:
    write_manifest(tmp_path / "manifest.parquet", good_rows(3) | {"tokens": [[1] * 1_000] * 3})
    config = write_config(tmp_path / "job.yaml", **job, **changes)
    options = [f"--{name}={value}" for name, value in (("speed", speed), ("price", price)) if value is not None]
    found = json.loads(cli("plan", config, "--json", *options).stdout)
    hours = found["audio_hours"] / 1_000
    bill = [found[name] for name in ("gpu_hours", "gpus", "hours", "cost")]
    scaled = [value if value is None or at == 1 else pytest.approx(value * hours) for at, value in enumerate(expected)]
    assert bill == scaled


@pytest.mark.parametrize(
    "options",
    [
        ["--price", "2"],
        ["--speed", "3", "--calibrate"],
        *(["--speed", value] for value in ("0", "-1", "nan", "inf", "1e-320", "fast")),
        *(["--price", value, "--speed", "3"] for value in ("0", "nan", "inf")),
    ],
)
def test_options_that_make_no_sense_together_are_ignored(
    job: dict[str, Any], tmp_path: Path, options: list[str]
) -> None:
    result = cli("plan", write_config(tmp_path / "job.yaml", **job), *options)
    assert result.exit_code == 2
    assert "Usage: s3gen plan" in result.stderr
    assert options[0] in result.stderr


@pytest.mark.parametrize("kind", ["parquet", "webdataset", "lhotse"])
def test_the_disk_is_full_before_the_job_is_done(tmp_path: Path, kind: str) -> None:
    rows, samples = 200, 12 * SAMPLES_PER_TOKEN
    columns = pa.table({"id": [f"row-{n}" for n in range(rows)], "voice_id": ["v"] * rows, "text": ["Hello."] * rows})
    noise = np.random.default_rng(0).uniform(-1, 1, (rows, samples)).astype(np.float32)
    clips = [encode(wave, "wav") for wave in noise]
    sound, stored = Sound(suffix="wav", rate=24_000, samples=[samples] * rows), FORMATS[kind]
    stored.write(tmp_path / "shard", columns, iter(clips), sound)
    if stored.write_cuts is not None:
        stored.write_cuts(tmp_path / "cuts", columns, sound)
    needed = disk_bytes(rows, rows * samples, columns.nbytes / rows, 0.5)[kind]
    assert needed["wav"] == pytest.approx(sum(path.stat().st_size for path in tmp_path.iterdir()), rel=0.02)
    assert needed["flac"] == needed["wav"] - rows * len(clips[0]) / 2


def test_calibration_measures_the_job_s_own_batches(
    job: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jobs.estimate.speed.SECONDS", 1_000.0)  # the batches are at their end before
    result = cli("plan", write_config(tmp_path / "job.yaml", **job), "--calibrate", "--price", "2", "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    made = found["measured"]
    assert (made["rows"], made["batches"]) == (6, 3)
    # All rows were made.
    assert found["speed"] == pytest.approx(3600 * found["audio_hours"] / made["seconds"])
    assert found["cost"] == pytest.approx(2 * found["audio_hours"] / found["speed"])
    assert found["flac_share"] == made["flac_share"] != 0.5
    assert not (tmp_path / "out").exists()


class _Slow:
    """A model whose batches take a second for each hundred frames, by its own clock."""

    device = torch.device("cpu")

    def __init__(self, monkeypatch: pytest.MonkeyPatch, broken: bool = False) -> None:
        self.now, self.broken, self.rows = 0.0, broken, list[int]()
        monkeypatch.setattr("jobs.estimate.speed.time", SimpleNamespace(monotonic=lambda: self.now))

    def warm_up(self, max_frames: int, **how: Any) -> None:
        self.now += 1_000

    @property
    def flow(self) -> Flow:
        return S3GenModel.from_pretrained("random:tiny").flow

    def voice_fingerprint(self) -> str:
        return S3GenModel.from_pretrained("random:tiny").voice_fingerprint()

    def synthesize(self, tokens: list[torch.Tensor], voices: list[Any], *args: Any, **kwargs: Any) -> list[Any]:
        if self.broken:
            raise ValueError("no such kernel")
        self.rows.append(len(tokens))
        self.now += (
            sum(2 * (len(row) + len(voice.prompt_token)) for row, voice in zip(tokens, voices, strict=True)) / 100
        )
        return [torch.zeros(SAMPLES_PER_TOKEN * len(row)) for row in tokens]


def _gauge(model: _Slow) -> Gauge:
    config = config_from({"model": "m", "manifest": "m", "voices": "v", "output": "o"})
    return Gauge(cast("S3GenModel", model), config, max_frames=8_192, device="a slow one")


def _batches(table: Path, count: int, rows: int) -> list[Batch]:
    voice = VoiceTable.open(str(table)).get_many(["anna"])["anna"]  # 15 tokens
    items = [Item(Row(n, f"r{n}", "anna", np.zeros(35, np.int64), n), voice) for n in range(rows)]  # 100 frames
    return [items] * count


def test_calibration_on_a_slow_device_takes_hours(table: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = _Slow(monkeypatch)
    gauge = _gauge(model)
    began = model.now
    found = gauge.measure(_batches(table, count=100, rows=500), 0.014, seconds=40)
    # A batch of 500 s is cut to one of 10.
    assert model.rows == [1, 5, 10, 10, 10, 10]
    assert model.now - began == 46
    assert (found.rows, found.batches, found.seconds) == (40, 4, 40)
    assert found.x_real_time == pytest.approx(1.4)
    # Of other rows with shorter prompts there is more in a frame.
    assert replace(found, audio_per_frame=0.02).x_real_time == pytest.approx(2)


def test_calibration_on_a_device_that_needs_a_minute_for_a_row_goes_on_and_on(
    table: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = _Slow(monkeypatch)
    gauge = _gauge(model)
    found = gauge.measure(_batches(table, count=100, rows=500), 0.014, seconds=0.9)
    assert model.rows == [1, 1]
    assert (found.rows, found.seconds, found.frames) == (1, 1, 100)


def test_calibration_makes_rows_twice_where_there_are_few(table: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = _Slow(monkeypatch)
    found = _gauge(model).measure(_batches(table, count=2, rows=3), 0.014, seconds=40)
    assert model.rows == [1, 3, 3, 3]
    assert (found.rows, found.seconds) == (6, 6)


def test_a_model_that_makes_nothing_has_a_speed(table: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        JobError, match="no row of the sample could be made: synthesis_error: ValueError: no such kernel"
    ):
        _gauge(_Slow(monkeypatch, broken=True)).measure(_batches(table, count=2, rows=3), 0.014)


def test_a_cpu_is_measured_for_a_cluster_of_gpus(job: dict[str, Any], tmp_path: Path) -> None:
    config = write_config(tmp_path / "job.yaml", **job, ray_address="head:6379")
    result = cli("plan", config, "--calibrate")
    assert result.exit_code == 2
    assert "head:6379" in result.stderr
    assert "give --speed" in result.stderr


@pytest.mark.parametrize(("given", "budget"), [("auto", 4_096), (1_000, 1_000)])
def test_calibration_takes_a_batch_size_that_the_job_will_not_have(
    job: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: int | str, budget: int
) -> None:
    """The way on a GPU, which is in the hands of the test."""
    shares: list[float] = []

    class Calibrator:
        def __init__(self, model: object, meter: object, solver: object) -> None:
            pass

        def run(self, task: object) -> Calibration:
            return Calibration(max_frames=4_096, free=1, total=2)

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "H100")
    monkeypatch.setattr("jobs.estimate.speed.CudaMeter", shares.append)
    monkeypatch.setattr("jobs.estimate.speed.Calibrator", Calibrator)
    monkeypatch.setattr("jobs.estimate.speed.open_prepared", lambda *arguments: _Slow(monkeypatch))
    config = write_config(tmp_path / "job.yaml", **job, batch={"max_frames": given}, gpus_per_worker=0.5, workers=4)
    result = cli("plan", config, "--calibrate", "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert (found["max_frames"], found["max_frames_assumed"], found["on_gpu"]) == (budget, False, True)
    assert found["measured"]["device"] == "H100"
    assert shares == ([0.5] if given == "auto" else [])
    # Four halves are two GPUs.
    assert found["hours"] == pytest.approx(found["audio_hours"] / found["speed"] / 2)
    result = cli("plan", config, "--calibrate", "--json", "--set", "gpus_per_worker=2")
    double = json.loads(result.stdout)
    assert double["speed"] == pytest.approx(found["speed"] / 2)
