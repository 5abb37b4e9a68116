"""The frame budget of a job: found once, where the workers are, and the job's from then on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from jobs import making, runs
from jobs.config.config import config_from
from jobs.crew.actor import Recipe
from jobs.crew.crew import Crew
from jobs.estimate.budget import CPU_FRAMES
from jobs.making import workplace
from jobs.runs import Synthesis
from tests.jobs import made_job
from tests.jobs.command import cli
from tests.jobs.inputs import good_rows, write_config, write_manifest
from tests.jobs.ray_session import local_ray

__all__ = ["local_ray"]

FOUND = 2_048  # what the calibrator of tests.jobs.fake_gpu finds for a whole GPU


class Watch:
    """What the crews of a run are told, and what is done about it."""

    def __init__(self) -> None:
        self.recipes: list[Recipe] = []
        self.calibrator = "tests.jobs.fake_gpu:open_calibrator"
        self.make_shards = True

    @property
    def calibrations(self) -> int:
        return sum("config" in recipe.arguments for recipe in self.recipes)

    @property
    def worker_frames(self) -> int:
        """The budget that the workers of the last run got."""
        return int(self.recipes[-1].arguments["max_frames"])


@pytest.fixture
def watch(monkeypatch: pytest.MonkeyPatch) -> Watch:
    seen = Watch()

    class Watched(Crew):
        def __init__(self, recipe: Recipe, **order: Any) -> None:
            calibrates = "open_calibrator" in recipe.make
            seen.recipes.append(recipe)
            replaced = Recipe(make=seen.calibrator, arguments=recipe.arguments)
            super().__init__(replaced if calibrates else recipe, **order)
            self._stopped = not calibrates and not seen.make_shards

        def work(self, *args: Any, **kwargs: Any) -> None:
            if self._stopped:
                raise KeyboardInterrupt
            super().work(*args, **kwargs)

    for room in (making, runs):
        monkeypatch.setattr(room, "Crew", Watched)
    return seen


@pytest.fixture
def job(table: Path, tmp_path: Path, local_ray: None) -> dict[str, Any]:
    """A configuration. Ray believes in two GPUs, so each worker gets one; torch finds none."""
    manifest = write_manifest(tmp_path / "manifest.parquet", good_rows(48, most=90))
    return {
        "manifest": str(manifest),
        "voices": str(table),
        "output": str(tmp_path / "out"),
        "shard_rows": 24,
        "engine": {"n_cfm_timesteps": 1},
    }


def _frozen(output: Path) -> Any:
    return json.loads((output / "job.json").read_text())["config"]["batch"]["max_frames"]


def _digests(output: Path) -> list[str]:
    found: list[str] = pq.read_table(output / "index.parquet").column("sha256").to_pylist()
    return found


def test_a_resume_makes_other_batches_than_the_run_before_it(job: dict[str, Any], tmp_path: Path, watch: Watch) -> None:
    config, output = write_config(tmp_path / "job.yaml", **job), tmp_path / "out"
    watch.make_shards = False
    assert cli("synth", config).exit_code == 1
    assert (watch.calibrations, watch.worker_frames, _frozen(output)) == (1, FOUND, FOUND)

    # Each of these runs would find another number if it looked.
    watch.calibrator = "tests.jobs.fake_gpu:Hopeless"
    for again in (["synth", config], ["resume", output], ["resume", output, "--set", "batch.max_frames=auto"]):
        assert cli(*again).exit_code == 1
        assert (watch.calibrations, watch.worker_frames, _frozen(output)) == (1, FOUND, FOUND)
    refused = cli("resume", output, "--set", "engine.dtype=bfloat16", "--set", "engine.compile=true")
    assert refused.exit_code == 2
    assert 'engine.dtype: was "float32", is "bfloat16"' in refused.stderr
    assert "engine.compile: was false, is true" in refused.stderr

    watch.make_shards = True
    assert cli("resume", output).exit_code == 0
    explicit = write_config(tmp_path / "explicit.yaml", **{**job, "output": str(tmp_path / "whole")})
    assert cli("synth", explicit, "--set", f"batch.max_frames={FOUND}").exit_code == 0
    assert (watch.calibrations, _frozen(tmp_path / "whole")) == (1, FOUND)
    assert _digests(output) == _digests(tmp_path / "whole")


def test_a_number_that_is_given_is_not_used(job: dict[str, Any], tmp_path: Path, watch: Watch) -> None:
    config, output = write_config(tmp_path / "job.yaml", **job, batch={"max_frames": 5_000}), tmp_path / "out"
    watch.make_shards = False
    cli("synth", config)
    assert (watch.calibrations, watch.worker_frames, _frozen(output)) == (0, 5_000, 5_000)
    cli("synth", config, "--set", "batch.max_frames=auto")
    assert watch.worker_frames == 5_000
    cli("resume", output, "--set", "batch.max_frames=700")
    assert (watch.worker_frames, _frozen(output)) == (700, 5_000)


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        # This process has no GPU: the cluster's is asked.
        ({"ray_address": "127.0.0.1:1", "engine": {"device": "cuda", "n_cfm_timesteps": 1}}, FOUND),
        ({"gpus_per_worker": 0.5, "workers": 2}, FOUND // 2),
    ],
)
def test_the_budget_is_of_another_machine_than_a_workers_share(
    job: dict[str, Any], tmp_path: Path, watch: Watch, changes: dict[str, Any], found: int
) -> None:
    watch.make_shards = False
    result = cli("synth", write_config(tmp_path / "job.yaml", **(job | changes)), "--limit", 10)
    assert (result.exit_code, watch.worker_frames, _frozen(tmp_path / "out-trial-10")) == (1, found, found)
    assert f"frame budget {found}, from" in result.stderr


def test_a_machine_without_gpus_is_measured(job: dict[str, Any], tmp_path: Path, watch: Watch) -> None:
    watch.make_shards = False
    watch.calibrator = "tests.jobs.fake_gpu:Hopeless"
    cli("synth", write_config(tmp_path / "job.yaml", **job), "--set", "engine.device=cpu")
    assert (watch.calibrations, _frozen(tmp_path / "out")) == (0, CPU_FRAMES)


def test_a_gpu_that_only_ray_finds_ends_the_job(job: dict[str, Any], tmp_path: Path, watch: Watch) -> None:
    watch.make_shards = False
    watch.calibrator = "jobs.estimate.budget:open_calibrator"
    cli("synth", write_config(tmp_path / "job.yaml", **job))
    assert (watch.calibrations, _frozen(tmp_path / "out")) == (1, CPU_FRAMES)


def test_a_calibration_that_fails_leaves_a_job_behind(job: dict[str, Any], tmp_path: Path, watch: Watch) -> None:
    watch.calibrator = "tests.jobs.fake_gpu:Hopeless"
    result = cli("synth", write_config(tmp_path / "job.yaml", **job))
    assert result.exit_code == 1
    assert "batch.max_frames: auto did not come to a number: ValueError: the card is on fire" in result.stderr
    assert "--set batch.max_frames=" in result.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("ranges_here", "here"), [(making.RANGES_HERE, True), (0, False)])
def test_only_the_end_of_a_small_job_is_made_without_ray(
    job: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ranges_here: int, here: bool
) -> None:
    monkeypatch.setattr(making, "RANGES_HERE", ranges_here)
    ledger = made_job.start(str(tmp_path / "made"), made_job.write_manifest(tmp_path / "made.parquet"))
    config = config_from(job | {"model": "random:tiny"})
    described = Synthesis(config=config, frozen={}, plan=ledger.plan)
    made_job.make(ledger, 0)
    with workplace(described, ledger.folder) as (share, _):
        assert share is not None
    made_job.make_all(ledger)
    with workplace(described, ledger.folder) as (share, _):
        assert (share is None) == here
