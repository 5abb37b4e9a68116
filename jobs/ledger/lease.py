"""One run at a time on one output: a lease that its holder renews and that lapses without it.

Layout: ``ledger/lease/<generation>.json``, or ``<generation>-<holder>.json`` in a store without put-if-absent. Each new
holder takes the next generation; nobody writes another one's object. The *head*, the object of the highest generation,
is the lease in force; within a generation the smallest name is, by the same rule for all.

- With put-if-absent only one of two runs can create a generation, so there is one head at any time.
- Without it, both write objects of their own, wait, and look which is the head. Should one have looked too early, its
  next heartbeat finds the other's smaller name, and it stops. Shards are safe through this: commits do not depend on
  the lease, it only keeps two runs from doing the same work and from finishing at the same time.

The holder renews its object every few seconds from a thread. Whoever finds a lease watches it on its own clock, since
clocks of machines differ: unchanged for ``LAPSE_SECONDS``, it has lapsed. It has at once when it was released, when its
process was on this host and is gone, or when its time lies so far back that no clock is that wrong. A lease that is
renewed while watched is held.

A holder that cannot renew, since the storage is away, works on: commits do not depend on the lease. It has lost the
lease when it sees another head; before each step that does depend on the lease, it looks.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import NoReturn

from jobs.errors import JobError, LeaseHeld, StorageError
from jobs.storage.folders import Folder
from jobs.storage.patience import Patience

LEASE_FOLDER = "ledger/lease/"
LAPSE_SECONDS = 30.0
BEAT_SECONDS = 4.0
POLL_SECONDS = 1.0
RELEASE_SECONDS = 10.0  # to wait for a heartbeat under way
SETTLE_SECONDS = 2.0  # before looking who won, in a store without put-if-absent
HEAD_TRIES = 20  # each sees another holder, or a listing that is behind
STALE_SECONDS = 600.0  # by the clock on the wall: older than any difference between two clocks
NAME = re.compile(r"^ledger/lease/(\d{8})(?:-([0-9a-f]+))?\.json$")


@dataclass(frozen=True, kw_only=True, slots=True)
class Timing:
    """The lease's clocks and waits, in seconds; tests turn them."""

    lapse: float = LAPSE_SECONDS
    beat: float = BEAT_SECONDS
    poll: float = POLL_SECONDS
    settle: float = SETTLE_SECONDS
    stale: float = STALE_SECONDS
    clock: Callable[[], float] = time.monotonic
    wall: Callable[[], float] = time.time
    sleep: Callable[[float], None] = time.sleep


@dataclass(frozen=True, kw_only=True, slots=True)
class LeaseState:
    """What a lease object says."""

    holder: str  # a random name of this run
    host: str
    space: str  # where the process id means something: a digest of boot and process namespace
    pid: int
    process_start: str  # tells a process from a later one with its id
    taken_at: float  # unix time
    beat_at: float  # unix time of the last renewal
    beats: int
    released: bool = False

    def __str__(self) -> str:
        when = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(self.taken_at))
        return f"process {self.pid} on {self.host}, since {when}"


def read_lease(folder: Folder) -> LeaseState | None:
    """The lease in force, held or released; None when no run ever began."""
    head = _head(folder)
    return head[1] if head else None


def is_live(state: LeaseState | None, timing: Timing | None = None) -> bool:
    """Whether the lease looks held, to one who cannot watch it: by the clock on the wall."""
    timing = timing or Timing()
    if state is None or state.released or _holder_is_dead(state):
        return False
    return abs(timing.wall() - state.beat_at) <= timing.lapse


class Lease:
    """The lease that this process holds. ``take_lease`` makes it."""

    def __init__(self, folder: Folder, name: str, state: LeaseState, timing: Timing) -> None:
        # A heartbeat that goes on asking for minutes is none; whoever has to know waits.
        self._folder, self._brief = folder, folder.with_patience(Patience(total=timing.beat))
        self._name, self._state, self._timing = name, state, timing
        self._lost: str | None = None
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._keep, name="lease", daemon=True)

    @property
    def generation(self) -> int:
        """Higher than that of every earlier holder."""
        return int(self._name.removeprefix(LEASE_FOLDER)[:8])

    @property
    def state(self) -> LeaseState:
        """What the lease object said at the last renewal."""
        return self._state

    @property
    def lost(self) -> str | None:
        """Why the lease is no longer held, or None as far as is known; looks at no storage."""
        return self._lost

    def confirm(self) -> None:
        """Returns when the lease is still held, by asking the storage now, for minutes if it does not answer.

        Raises:
            LeaseHeld: another run has taken over.
            StorageError, StorageUnknown: the storage does not say.
        """
        self._renew(self._folder)
        self._look(self._folder)  # one that had lapsed may have been taken in the middle of this
        if self._lost is not None:
            raise LeaseHeld(f"{self._folder.url}: this run has lost the output, {self._lost}; it stops")

    def renew(self) -> None:
        """One heartbeat. Storage errors pass through; a lease that was taken over is marked as lost."""
        self._renew(self._brief)

    def _renew(self, folder: Folder) -> None:
        with self._lock:
            if self._stop.is_set() or not self._look(folder):
                return
            state = replace(self._state, beat_at=self._timing.wall(), beats=self._state.beats + 1)
            folder.put(self._name, _to_bytes(state))
            self._state = state

    def _look(self, folder: Folder) -> bool:
        """Whether the lease is in force."""
        if self._lost is None:
            head = _head(folder)
            if head is None or head[0] != self._name:
                self._lost = f"another run has taken over ({head[1] if head else 'its lease is gone'})"
        return self._lost is None

    def start(self) -> None:
        """Starts the heartbeat."""
        self._thread.start()

    def release(self) -> None:
        """Stops the heartbeat and lets go, so that the next run need not wait."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(RELEASE_SECONDS)
        if self._thread.is_alive() or self._lost is not None:
            return  # a request that hangs: the lease lapses by itself
        with contextlib.suppress(JobError):
            self._brief.put(self._name, _to_bytes(replace(self._state, released=True)))

    def _keep(self) -> None:
        while not self._stop.wait(self._timing.beat) and self.lost is None:
            # A failed renewal is tried again, whatever it failed of.
            with contextlib.suppress(Exception):
                self.renew()


@contextlib.contextmanager
def take_lease(
    folder: Folder, *, on_wait: Callable[[str], None] = lambda text: None, timing: Timing | None = None
) -> Iterator[Lease]:
    """Holds the lease on an output while the ``with`` block runs; waits for one that may have lapsed.

    Args:
        on_wait: is told, once per lease found, who holds it.

    Raises:
        LeaseHeld: another run renewed its lease while this one waited.
    """
    lease = _take(folder, on_wait, timing or Timing())
    lease.start()
    try:
        yield lease
    finally:
        lease.release()


def _take(folder: Folder, on_wait: Callable[[str], None], timing: Timing) -> Lease:
    watched: tuple[str, LeaseState] | None = None
    since = timing.clock()
    while True:
        head = _head(folder)
        if head is None or _has_lapsed(head[1], timing) or (watched == head and timing.clock() - since >= timing.lapse):
            lease = _create(folder, head[0] if head else None, timing)
            if lease is not None:
                return lease
            continue
        if watched is None:
            watched, since = head, timing.clock()
            on_wait(
                f"{folder.url} is held by another run ({head[1]}); waiting up to {timing.lapse:g} s for it to lapse"
            )
        elif watched != head:
            _refuse(folder, head[1])
        timing.sleep(timing.poll)


def _refuse(folder: Folder, state: LeaseState) -> NoReturn:
    raise LeaseHeld(f"{folder.url}: another run is alive on this output ({state}); stop it first, or let it finish")


def _create(folder: Folder, after: str | None, timing: Timing) -> Lease | None:
    """The next generation, if this run gets it."""
    generation = 1 + (int(after.removeprefix(LEASE_FOLDER)[:8]) if after else 0)
    state = _own_state(timing)
    if folder.can_create():
        name = f"{LEASE_FOLDER}{generation:08d}.json"
        won = folder.create(name, _to_bytes(state))
    else:
        name = f"{LEASE_FOLDER}{generation:08d}-{state.holder}.json"
        folder.put(name, _to_bytes(state))
        timing.sleep(timing.settle)
        head = _head(folder)
        won = head is not None and head[0] == name
        if not won:
            folder.delete(name)
    if not won:
        return None
    for old in folder.list(LEASE_FOLDER):
        if old[: len(LEASE_FOLDER) + 8] < name[: len(LEASE_FOLDER) + 8]:
            folder.delete(old)
    return Lease(folder, name, state, timing)


def _head(folder: Folder) -> tuple[str, LeaseState] | None:
    for _ in range(HEAD_TRIES):
        names = [name for name in folder.list(LEASE_FOLDER) if NAME.match(name)]
        if not names:
            return None
        newest = max(name[: len(LEASE_FOLDER) + 8] for name in names)
        # Without a holder in it a name is the generation's only one; "." sorts after "-", so it is asked for first.
        name = min((name for name in names if name.startswith(newest)), key=lambda name: ("-" in name, name))
        # A newer holder may have cleared it away between the two requests.
        with contextlib.suppress(FileNotFoundError):
            return name, _from_bytes(folder.read(name), folder.path(name))
    raise StorageError(f"{folder.path(LEASE_FOLDER)}: a lease is listed again and again that cannot be found")


def _to_bytes(state: LeaseState) -> bytes:
    return json.dumps(asdict(state), indent=1).encode()


def _from_bytes(data: bytes, url: str) -> LeaseState:
    try:
        return LeaseState(**json.loads(data))
    except (ValueError, TypeError) as error:
        raise StorageError(f"{url} is no lease: {error}; delete it if no run is alive on this output") from None


# --- processes --------------------------------------------------------------------------------------------------------


def _own_state(timing: Timing) -> LeaseState:
    now, pid = timing.wall(), os.getpid()
    return LeaseState(
        holder=secrets.token_hex(8),
        host=socket.gethostname(),
        space=_process_space(),
        pid=pid,
        process_start=_process_start(pid) or "",
        taken_at=now,
        beat_at=now,
        beats=0,
    )


def _has_lapsed(state: LeaseState, timing: Timing) -> bool:
    return state.released or _holder_is_dead(state) or timing.wall() - state.beat_at > timing.stale


def _holder_is_dead(state: LeaseState) -> bool:
    """Only certain where the process id means the same here as there."""
    if not state.space or state.host != socket.gethostname() or state.space != _process_space():
        return False
    try:
        return _process_start(state.pid) != state.process_start
    except PermissionError:
        return False


def _process_space() -> str:
    """Names the running kernel and the process namespace; containers share host names, but not these.

    Empty where there is no /proc: then no holder is known to be dead, and leases lapse by time.
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return hashlib.sha256(f"{boot} {os.readlink('/proc/self/ns/pid')}".encode()).hexdigest()[:16]
    except OSError:
        return ""


def _process_start(pid: int) -> str | None:
    """When a process began, in clock ticks since boot; None when there is none, or only its unreaped remains.

    Raises:
        PermissionError: there is one, of another user, and what it is may not be seen.
    """
    try:
        # The name, in parentheses, may hold anything: the fields count from its end.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, 0)
        return None
    return None if fields[0] in ("Z", "X") else fields[19]
