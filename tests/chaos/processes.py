"""The processes below this one, however deep: found, told apart, sent signals. From Linux's /proc.

Only what was started from here is ever found: the walk begins at a process of our own and goes from parent to child.
"""

from __future__ import annotations

import ctypes
import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h


class Role(StrEnum):
    """What a process is for."""

    WORKER = "worker"
    RAYLET = "raylet"
    AGENT = "agent"  # of Ray; ends by itself up to a minute after its raylet
    IDLE = "idle"  # a worker of Ray's without work; ends after its raylet only where process 1 adopts it
    OTHER = "other"


@dataclass(frozen=True, slots=True)
class Process:
    """One that was alive when it was looked at."""

    pid: int
    started: int  # clock ticks since boot: tells it from a later one with its id
    command: str

    @property
    def role(self) -> Role:
        """By its command line, which Ray rewrites for its workers."""
        program = self.command.partition(" ")[0]
        if program.rpartition("/")[2] == "raylet":
            return Role.RAYLET
        if "agent" in self.command.lower():
            return Role.AGENT
        if program == "ray::IDLE":
            return Role.IDLE
        return Role.WORKER if program.startswith("ray::") else Role.OTHER

    def send(self, number: signal.Signals) -> bool:
        """Whether the signal reached it: False when it is gone, whoever has its id now."""
        try:
            handle = os.pidfd_open(self.pid)
        except ProcessLookupError:
            return False
        try:
            stat = _stat(self.pid)
            if stat is None or stat.started != self.started:
                return False
            signal.pidfd_send_signal(handle, number)
        except ProcessLookupError:
            return False
        finally:
            os.close(handle)
        return True


def adopt_orphans() -> None:
    """From now on this process is the parent of all below it whose own parents die: nothing gets out of sight."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "this kernel does not let a process adopt orphans")


def below(pid: int) -> list[Process]:
    """All living processes below ``pid``, without itself."""
    children: dict[int, list[_Stat]] = {}
    for entry in os.scandir("/proc"):
        if entry.name.isdigit() and (stat := _stat(int(entry.name))) is not None:
            children.setdefault(stat.parent, []).append(stat)
    found, left = [], [pid]
    while left:
        for stat in children.get(left.pop(), ()):
            left.append(stat.pid)
            if stat.alive:
                found.append(Process(stat.pid, stat.started, _command(stat.pid)))
    return found


def own_processes() -> list[Process]:
    """All living processes below this one."""
    return below(os.getpid())


def wait_until(condition: Callable[[], bool], seconds: float, poll: float = 0.05) -> bool:
    """Whether it came true in time."""
    until = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > until:
            return False
        time.sleep(poll)
    return True


@dataclass(frozen=True, slots=True)
class _Stat:
    pid: int
    parent: int
    started: int
    alive: bool


def _stat(pid: int) -> _Stat | None:
    try:
        # The name, in parentheses, may hold anything: the fields count from its end.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return _Stat(pid, int(fields[1]), int(fields[19]), fields[0] not in ("Z", "X"))


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    except OSError:
        return ""
