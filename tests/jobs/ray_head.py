"""The head of a Ray cluster on this machine, with its dashboard: what `s3gen submit` talks to."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

START_SECONDS = 120.0
STOP_SECONDS = 30.0
STORE_BYTES = 80 * 2**20
PORTS = ("port", "dashboard-port", "dashboard-agent-listen-port", "dashboard-agent-grpc-port", "metrics-export-port")
LOOPBACK = "127.0.0.1"


@pytest.fixture(scope="session")
def ray_head() -> Iterator[str]:
    """The URL of the dashboard of a cluster of one machine with two CPUs."""
    # Its path is short, since it holds sockets.
    folder = Path(tempfile.mkdtemp(prefix="head-"))
    try:
        with head_in(folder) as address:
            yield address
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def head_in(folder: Path) -> Iterator[str]:
    """A head whose files are in a folder; all of it gone afterwards."""
    ports = dict(zip(PORTS, free_ports(len(PORTS)), strict=True))
    command = [
        str(Path(sys.executable).with_name("ray")), "start", "--head", "--block", "--disable-usage-stats",
        f"--node-ip-address={LOOPBACK}", f"--dashboard-host={LOOPBACK}", "--include-dashboard=true", "--num-cpus=2",
        f"--object-store-memory={STORE_BYTES}", f"--temp-dir={folder / 'ray'}",
        *(f"--{name}={port}" for name, port in ports.items()),
    ]  # fmt: skip
    # The commands of this environment, whether or not it is activated; no other cluster than this one.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment |= {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "OMP_NUM_THREADS": "1",
        "RAY_AUTH_MODE": "disabled",  # whether this machine has a token or not
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
    try:
        address = f"http://{LOOPBACK}:{ports['dashboard-port']}"
        _await_jobs(address, process, folder / "log")
        yield address
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def free_ports(count: int) -> list[int]:
    """Ports on which nothing listens now."""
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind((LOOPBACK, 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def _await_jobs(address: str, process: subprocess.Popen[bytes], log: Path) -> None:
    until = time.monotonic() + START_SECONDS
    while time.monotonic() < until and process.poll() is None:
        try:
            with urllib.request.urlopen(f"{address}/api/jobs/", timeout=5) as answer:
                if answer.status == 200:
                    return
        except OSError:
            time.sleep(0.2)
    raise RuntimeError(f"no head came up: {log.read_text(errors='replace')[-2000:]}")
