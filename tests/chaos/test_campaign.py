"""The short cut of a campaign: a few faults of different kinds, checked as thoroughly as fifty."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SECONDS = 400  # on a machine that is busy with other things
FAULTS = {"worker": 2, "driver_at_work": 1, "driver_finishing": 1}


@pytest.mark.cluster
def test_a_job_that_is_killed_in_several_ways_ends_as_if_nothing_had_happened(tmp_path: Path) -> None:
    faults = [f"{name}={count}" for name, count in FAULTS.items()]
    # Of all formats the one whose shards are two files.
    job = [
        "--seed",
        "1",
        "--rows",
        "120",
        "--shard-rows",
        "8",
        "--format",
        "lhotse",
        "--report",
        str(tmp_path / "chaos"),
    ]
    # A process of its own, which becomes the parent of whatever is orphaned.
    campaign = subprocess.run(
        [sys.executable, "-m", "tests.chaos", *job, "--faults", *faults],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )
    assert campaign.returncode == 0, campaign.stdout + campaign.stderr
    found = json.loads((tmp_path / "chaos.json").read_text())
    assert found["findings"] == []
    assert found["kills"] == sum(FAULTS.values())
    assert "| all | 4 | 0 | 0 | 0 |" in (tmp_path / "chaos.md").read_text()
