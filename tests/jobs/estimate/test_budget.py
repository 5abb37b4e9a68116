"""The automatic frame budget: from what two batches take, to how large one may be."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from jobs.config.config import config_from
from jobs.estimate.budget import (
    CPU_FRAMES,
    LEAST_FRAMES,
    MEMORY_SHARE,
    MOST_FRAMES,
    TRIED_FRAMES,
    Calibration,
    Calibrator,
    Peak,
    budget_of,
    open_calibrator,
)
from s3gen import S3GenModel, Solver
from tests.jobs.fake_gpu import FakeGpu

GB = 10**9


@pytest.mark.parametrize(
    ("peaks", "free", "budget"),
    [
        # 100 kB a frame: 8 GB are enough for 80,000 of them.
        ([Peak(4_096, 409_600_000), Peak(16_384, 1_638_400_000)], 10 * GB, 65_536),
        # The same and 2 GB besides, however small the batch: 60,000.
        ([Peak(4_096, 2_409_600_000), Peak(16_384, 3_638_400_000)], 10 * GB, 32_768),
        # Less than was tried: 8 GB of 10 for the larger batch.
        ([Peak(4_096, 4 * GB), Peak(16_384, 10 * GB)], 10 * GB, 8_192),
        # The larger one did not fit: 2 GB for 4,096 frames.
        ([Peak(4_096, 2 * GB)], 3 * GB, 4_096),
        ([Peak(512, GB)], GB, LEAST_FRAMES),
        ([], GB, LEAST_FRAMES),
        ([Peak(4_096, GB), Peak(16_384, 2 * GB)], 0, LEAST_FRAMES),
        ([Peak(4_096, GB), Peak(16_384, 2 * GB)], -GB, LEAST_FRAMES),
        ([Peak(4_096, GB // 1000), Peak(16_384, GB // 500)], 80 * GB, MOST_FRAMES),
        # A meter that shows no difference: as if all of it were the frames'.
        ([Peak(4_096, GB), Peak(16_384, GB)], 4 * GB, 32_768),
        ([Peak(4_096, 0), Peak(16_384, 0)], GB, MOST_FRAMES),
    ],
)
def test_the_budget_needs_more_memory_than_there_is(peaks: list[Peak], free: int, budget: int) -> None:
    assert budget_of(peaks, free) == budget
    assert budget_of(peaks[::-1], free) == budget


@pytest.mark.parametrize("free", range(GB, 60 * GB, 777_777_777))
def test_the_budget_is_no_power_of_two_or_wastes_half_of_what_fits(free: int) -> None:
    per_frame, fixed = 300_000, 200_000_000
    budget = budget_of([Peak(frames, fixed + per_frame * frames) for frames in (4_096, 16_384)], free)
    assert budget.bit_count() == 1
    fits = (MEMORY_SHARE * free - fixed) / per_frame
    assert budget <= fits < 2 * budget or budget == MOST_FRAMES


def test_calibration_of_the_real_model(tiny_model: S3GenModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """All but the meter is as on a GPU."""
    monkeypatch.setattr("jobs.estimate.budget.TRIED_FRAMES", 512)
    gpu = FakeGpu(10_000_000, held=1_000_000, fixed=100_000, per_frame=500, model=tiny_model)
    found = Calibrator(gpu, gpu, Solver(steps=1)).run(0)  # type: ignore[arg-type]
    assert gpu.made == [LEAST_FRAMES, 512, 2_048]
    # 0.8 x 9,000,000 bytes less 100,000 hold 14,200 frames.
    assert (found.max_frames, found.free, found.total) == (8_192, 9_000_000, 10_000_000)
    assert str(found) == "frame budget 8192, from 0.0 GB free of 0.0"


@pytest.mark.parametrize(
    ("room", "made", "budget"),
    [
        (100_000, [LEAST_FRAMES, 4_096, 16_384], 65_536),
        (12_000, [LEAST_FRAMES, 4_096, 8_192], 8_192),
        (4_100, [LEAST_FRAMES, 4_096], 2_048),
        (3_000, [LEAST_FRAMES, 2_048], 2_048),
        (1_500, [LEAST_FRAMES, 1_024], 1_024),
        (600, [512], LEAST_FRAMES),
        (500, [], LEAST_FRAMES),
    ],
)
def test_calibration_that_runs_out_of_memory_ends_the_job(room: int, made: list[int], budget: int) -> None:
    assert TRIED_FRAMES == 4_096
    gpu = FakeGpu(1_000 * room, per_frame=1_000)
    assert Calibrator(gpu, gpu).run(0).max_frames == budget  # type: ignore[arg-type]
    assert gpu.made == made


def test_an_error_of_the_model_is_taken_for_a_lack_of_memory() -> None:
    class Broken(FakeGpu):
        def synthesize(self, *args: object, **kwargs: object) -> list[object]:  # type: ignore[override]
            raise ValueError("no such kernel")

    gpu = Broken(GB)
    with pytest.raises(ValueError, match="no such kernel"):
        Calibrator(gpu, gpu).run(0)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("gpus", "free", "budget"),
    [
        (1.0, 11_000, 8_192),
        (2.0, 11_000, 8_192),
        (0.5, 11_000, 4_096),  # the other half is another worker's, though nobody has it yet
        (0.5, 3_000, 2_048),  # somebody has it
    ],
)
def test_the_memory_of_the_other_worker_on_a_gpu_is_used(
    monkeypatch: pytest.MonkeyPatch, gpus: float, free: int, budget: int
) -> None:
    """The path on a GPU, with CUDA's counters in the hands of the test: 1,000 bytes a frame, 20,000,000 in all."""
    held, total = 1_000_000, 20_000_000
    gpu = FakeGpu(total, held=held, per_frame=1_000)
    counters = {
        "synchronize": lambda: None,
        "empty_cache": lambda: None,
        "reset_peak_memory_stats": lambda: None,
        "mem_get_info": lambda: (1_000 * free, total),
        "memory_reserved": lambda: held,
        "max_memory_reserved": lambda: gpu.most,
    }
    for name, count in counters.items():
        monkeypatch.setattr(torch.cuda, name, count)
    monkeypatch.setattr("jobs.estimate.budget.device_of", lambda job: "cuda")
    monkeypatch.setattr("jobs.estimate.budget.open_prepared", lambda job, options, threads: gpu)
    monkeypatch.setattr("jobs.estimate.budget.TRIED_FRAMES", 1_024)
    job = {"model": "random:tiny", "manifest": "m", "voices": "v", "output": "o", "gpus_per_worker": gpus}
    calibrator = open_calibrator(config=config_from(job).frozen(), options={}, threads=1, gpus=gpus)
    found = calibrator.run(0)
    assert (found.max_frames, found.total) == (budget, total)
    assert found.free == min(1_000 * free, int(min(gpus, 1) * total) - held)


def test_a_cpu_waits_for_a_model_that_it_does_not_need(tmp_path: Path) -> None:
    job = {"model": str(tmp_path), "manifest": "m", "voices": "v", "output": "o", "engine": {"device": "cpu"}}
    assert open_calibrator(config=job, options={}, threads=1, gpus=1.0).run(0) == Calibration(max_frames=CPU_FRAMES)
