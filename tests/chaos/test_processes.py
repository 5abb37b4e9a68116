"""Whom a campaign may kill: what was started from here, however deep, and nobody else."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import replace

import pytest

from tests.chaos.processes import Process, Role, below, wait_until

NESTED = ["sh", "-c", "sh -c 'sleep 100; true' & sleep 100; true"]


@pytest.fixture
def family() -> Iterator[subprocess.Popen[bytes]]:
    """A process that has a child and a grandchild."""
    parent = subprocess.Popen(NESTED)
    assert wait_until(lambda: len(below(parent.pid)) == 3, 10)
    yield parent
    for process in below(parent.pid):
        process.send(signal.SIGKILL)
    parent.kill()
    parent.wait()


def test_children_of_children_are_found_and_the_own_parent_is_not(family: subprocess.Popen[bytes]) -> None:
    ours = {process.pid for process in below(os.getpid())}
    assert {process.pid for process in below(family.pid)} | {family.pid} <= ours
    assert not {os.getpid(), os.getppid()} & ours


def test_a_process_that_has_got_the_number_of_a_dead_one_is_spared(family: subprocess.Popen[bytes]) -> None:
    child = below(family.pid)[0]
    assert not replace(child, started=child.started - 1).send(signal.SIGKILL)
    assert child in below(family.pid)
    assert child.send(signal.SIGKILL)
    assert wait_until(lambda: child not in below(family.pid), 10)
    assert not child.send(signal.SIGKILL)


@pytest.mark.parametrize(
    ("command", "role"),
    [
        ("ray::Hand.run", Role.WORKER),
        ("ray::IDLE", Role.IDLE),
        ("/x/ray/core/src/ray/raylet/raylet --raylet_socket_name=/tmp/agent", Role.RAYLET),
        ("/x/bin/python -u /x/ray/dashboard/agent.py --node-ip-address=127.0.0.1", Role.AGENT),
        ("ray::RuntimeEnvAgent", Role.AGENT),
        ("/x/ray/core/src/ray/gcs/gcs_server --log_dir=/tmp", Role.OTHER),
    ],
)
def test_ray_processes_are_told_apart(command: str, role: Role) -> None:
    assert Process(1, 1, command).role is role
