"""What tests of jobs share: a voice table, and stores (a local folder, memory, S3 as moto's server speaks it)."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from pathlib import Path

import pytest

from s3gen import S3GenModel
from tests.jobs.inputs import build_table, write_clips
from tests.jobs.made_job import write_manifest
from tests.jobs.object_stores import Endpoint, RcloneServer, ignore_conditions, moto_server

STORES = ("local", "memory", "s3")


@pytest.fixture(scope="session")
def s3_endpoint() -> Iterator[Endpoint]:
    """An S3 server on a free port of the loopback interface."""
    with moto_server() as endpoint:
        yield endpoint


@pytest.fixture
def s3(s3_endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch) -> str:
    """The URL of an empty bucket; the standard variables lead to it."""
    s3_endpoint.use(monkeypatch)
    return s3_endpoint.make_bucket()


@pytest.fixture
def rclone(tmp_path: Path) -> Iterator[RcloneServer]:
    """A second, independent S3 server, with an empty folder of its own."""
    with RcloneServer(tmp_path / "rclone") as server:
        yield server


@pytest.fixture(params=STORES)
def place(request: pytest.FixtureRequest) -> str:
    """The URL of an empty folder in each kind of store."""
    return place_in(request.param, request)


def place_in(store: str, request: pytest.FixtureRequest) -> str:
    """The URL of an empty folder in one kind of store."""
    if store == "local":
        return str(request.getfixturevalue("tmp_path") / "place")
    if store == "memory":
        return f"memory://{secrets.token_hex(6)}/place"
    return f"{request.getfixturevalue('s3')}/place"


@pytest.fixture
def manifest(tmp_path: Path) -> str:
    """The path of one that `made_job` makes jobs of."""
    return write_manifest(tmp_path / "in" / "manifest.parquet")


@pytest.fixture(params=["conditional", "blind"])
def output(request: pytest.FixtureRequest, place: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """An output in each kind of store, with put-if-absent and without."""
    if request.param == "blind":
        ignore_conditions(monkeypatch)
    return place


@pytest.fixture(scope="module")
def table(tiny_model: S3GenModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The voices of `inputs`, as a table."""
    folder = tmp_path_factory.mktemp("voices")
    write_clips(folder / "clips")
    return build_table(tiny_model, folder / "clips", folder / "voices.parquet")
