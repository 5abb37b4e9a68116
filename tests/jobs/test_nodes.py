"""A job on a cluster whose nodes come and go, with and without warning: one run lives through all of it."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from jobs.verify.verify import verify
from s3gen import S3GenModel
from tests.chaos.driver import Driver
from tests.chaos.processes import wait_until
from tests.jobs.inputs import build_table, good_rows, write_clips, write_manifest
from tests.jobs.ray_nodes import cluster_of

CONFIG = Path(__file__).parents[2] / "configs/cluster.yaml"
ROWS, SHARD_ROWS = 200, 4
SOLVER_STEPS = 60  # so that a shard takes its time
STEP_SECONDS = 120.0  # the longest that any change of the cluster may take to show
QUIET = {"OMP_NUM_THREADS": "1", "RAY_USAGE_STATS_ENABLED": "0"}
# The command line, which looks at the cluster often and is soon impatient.
COMMAND = """
from jobs.crew import crew
crew.RESIZE_SECONDS, crew.PATIENCE_SECONDS = 1.0, 2.0
from jobs.cli import main
main()
"""


@pytest.fixture
def folder() -> Iterator[Path]:
    """With a short path, since Ray's sockets lie in it."""
    path = Path(tempfile.mkdtemp(prefix="nodes-", dir="/tmp"))
    yield path
    shutil.rmtree(path, ignore_errors=True)


def _settings(folder: Path, model: S3GenModel, address: str) -> list[str]:
    """What differs from the file for clusters."""
    write_clips(folder / "clips")
    settings = {
        "model": "random:tiny",
        "manifest": write_manifest(folder / "manifest.parquet", good_rows(ROWS, most=6)),
        "voices": build_table(model, folder / "clips", folder / "voices.parquet"),
        "output": folder / "out",
        "shard_rows": SHARD_ROWS,
        "ray_address": address,
        "batch.max_frames": 400,
        "engine.device": "cpu",
        "engine.n_cfm_timesteps": SOLVER_STEPS,
    }
    return [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]


def _commits(output: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in output.glob("ledger/commits/*/*.json")}


@pytest.mark.cluster
def test_a_job_outlives_a_node_then_all_nodes_and_takes_its_work_to_new_ones(
    folder: Path, tiny_model: S3GenModel
) -> None:
    output = folder / "out"
    with cluster_of([1, 1], folder, QUIET) as nodes:
        arguments = ["synth", str(CONFIG), *_settings(folder, tiny_model, nodes.address)]
        driver = Driver(folder / "d", arguments, QUIET, COMMAND)

        def wait_for(condition: Callable[[], bool]) -> None:
            assert wait_until(lambda: condition() or not driver.running, STEP_SECONDS), driver.said
            assert driver.running, driver.said

        try:
            wait_for(lambda: len(nodes.busy()) == 2 and len(_commits(output)) >= 2)
            committed = _commits(output)
            nodes.kill(nodes.alive[0], with_workers=False)

            added = nodes.add()
            wait_for(lambda: added in nodes.busy())
            drained = nodes.alive[0]
            nodes.drain(drained)
            wait_for(lambda: drained not in nodes.busy())
            assert "ends, since its machine is being drained" in driver.said
            nodes.kill(drained, with_workers=True)
            alone = len(_commits(output))  # but for what the dead node had just committed
            wait_for(lambda: len(_commits(output)) >= alone + 2)

            nodes.kill(added, with_workers=True)
            wait_for(lambda: "waiting for room" in driver.said)
            without = _commits(output)
            assert "a worker needs 1 CPUs and 0 GPUs; the cluster has" in driver.said
            assert len(without) < ROWS // SHARD_ROWS

            nodes.add()
            assert driver.wait(STEP_SECONDS) == 0, driver.said
        finally:
            driver.end()
    assert committed.items() <= without.items() <= _commits(output).items()
    assert verify(str(output)).damage == 0
    assert pq.read_table(output / "index.parquet")["id"].to_pylist() == good_rows(ROWS)["id"]
