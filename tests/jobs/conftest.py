"""Stores to run the same assertions over: a local folder, memory, and S3 as moto's server speaks it."""

from __future__ import annotations

import logging
import secrets
from collections.abc import Iterator
from pathlib import Path

import pytest

STORES = ("local", "memory", "s3")


@pytest.fixture(scope="session")
def s3_server() -> Iterator[str]:
    """The endpoint of an S3 server on a free port of the loopback interface."""
    import s3fs
    from moto.moto_server.threaded_moto_server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.WARNING)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    s3fs.S3FileSystem.clear_instance_cache()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def s3(s3_server: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """The URL of an empty bucket; the standard variables lead to it."""
    import s3fs

    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_server)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "testkey-of-the-environment")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "testsecret-of-the-environment")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    bucket = f"bucket-{secrets.token_hex(6)}"
    s3fs.S3FileSystem(use_listings_cache=False).mkdir(bucket)  # the instance that the storage room uses: quick
    return f"s3://{bucket}"


@pytest.fixture(params=STORES)
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of an empty folder in each kind of store."""
    if request.param == "local":
        return str(tmp_path / "place")
    if request.param == "memory":
        return f"memory://{secrets.token_hex(6)}/place"
    return f"{request.getfixturevalue('s3')}/place"
