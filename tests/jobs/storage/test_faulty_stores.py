"""Whole jobs, through the command line and Ray, to object stores that throttle, hang up and lose their answers."""

from __future__ import annotations

import io
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result

from jobs.cli import main
from jobs.storage.folders import Folder
from s3gen import S3GenModel
from tests.jobs.fault_proxy import FaultProxy, Faults
from tests.jobs.inputs import build_table, good_rows, write_clips, write_config, write_manifest
from tests.jobs.object_stores import Endpoint, RcloneServer
from tests.jobs.ray_session import local_ray

__all__ = ["local_ray"]

ROWS = 60
BAD_CONNECTION = Faults(slow_down=0.05, reset_before=0.05, reset_after=0.05)


def _cli(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments], catch_exceptions=False)


@pytest.fixture(params=["moto", "rclone"])
def bucket(request: pytest.FixtureRequest) -> tuple[Endpoint, str]:
    """An S3 server and an empty bucket of it: one with conditional writes, one without."""
    if request.param == "moto":
        endpoint: Endpoint = request.getfixturevalue("s3_endpoint")
        return endpoint, endpoint.make_bucket()
    server: RcloneServer = request.getfixturevalue("rclone")
    return server.endpoint, server.make_bucket()


@pytest.mark.usefixtures("local_ray")
def test_a_job_through_a_bad_connection_ends_whole(
    bucket: tuple[Endpoint, str], tmp_path: Path, tiny_model: S3GenModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    endpoint, url = bucket
    write_clips(tmp_path / "clips")
    config = write_config(
        tmp_path / "job.yaml",
        manifest=str(write_manifest(tmp_path / "manifest.parquet", good_rows(ROWS, most=5))),
        voices=str(build_table(tiny_model, tmp_path / "clips", tmp_path / "voices.parquet")),
        output=f"{url}/out",
        shard_rows=6,
        workers=2,
        batch={"max_frames": 2_000},
    )
    with FaultProxy(endpoint.url, BAD_CONNECTION, seed=1) as proxy:
        Endpoint(proxy.endpoint).use(monkeypatch)
        made = _cli("synth", config)
        met = proxy.met
    assert made.exit_code == 0, made.output
    assert min(met["slow_down"], met["reset_before"], met["reset_after"]) > 0

    endpoint.use(monkeypatch)
    verified = _cli("verify", f"{url}/out")
    assert verified.exit_code == 0, verified.output
    folder = Folder(f"{url}/out")
    index = pq.read_table(io.BytesIO(folder.read("index.parquet")))
    assert index["id"].to_pylist() == good_rows(ROWS)["id"]
    assert folder.list("audio/") == sorted(set(index["shard"].to_pylist()))
