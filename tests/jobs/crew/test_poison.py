"""Rows that kill or hang whoever makes them, in a whole job: the real worker, the real actor, the real driver."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from jobs import making
from jobs.cli import main
from jobs.crew.actor import Recipe
from jobs.crew.crew import Crew
from s3gen import S3GenModel
from tests.jobs.inputs import build_table, good_rows, write_clips, write_config, write_manifest
from tests.jobs.poisoned_worker import Poisoned
from tests.jobs.ray_session import local_ray

__all__ = ["local_ray"]

DEADLY = {1: Poisoned.KILLER, 2: Poisoned.HANGER}


class PoisonedCrew(Crew):
    """Its workers' model dies of some rows."""

    def __init__(self, recipe: Recipe, **order: Any) -> None:
        make = "tests.jobs.poisoned_worker:open_poisoned"
        super().__init__(Recipe(make=make, arguments=recipe.arguments), **order)


@pytest.mark.usefixtures("local_ray")
def test_rows_that_kill_or_hang_their_workers_end_the_job_or_take_their_neighbours_with_them(
    tiny_model: S3GenModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_clips(tmp_path / "clips")
    table = build_table(tiny_model, tmp_path / "clips", tmp_path / "voices.parquet")
    columns = good_rows(4)
    for row, token in DEADLY.items():
        columns["tokens"][row] = [token]
    config = write_config(
        tmp_path / "job.yaml",
        manifest=str(write_manifest(tmp_path / "manifest.parquet", columns)),
        voices=str(table),
        output=str(tmp_path / "out"),
        shard_rows=2,
        workers=2,
        stall_seconds=5,  # even on a busy machine a healthy worker gets some time in these
        batch={"max_frames": 8_192},
        engine={"device": "cpu", "n_cfm_timesteps": 1},
    )
    monkeypatch.setattr(making, "Crew", PoisonedCrew)
    result = CliRunner().invoke(main, ["synth", str(config)], catch_exceptions=False)
    assert result.exit_code == 3, result.output
    failed = pq.read_table(tmp_path / "out/failures.parquet").to_pylist()
    assert {row["id"]: row["error"] for row in failed} == {"row-0001": "worker_crashed", "row-0002": "worker_hung"}
    assert "did nothing for 5 s" in failed[1]["message"]
    index = pq.read_table(tmp_path / "out/index.parquet")
    assert index.column("id").to_pylist() == ["row-0000", "row-0003"]
