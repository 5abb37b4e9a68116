"""Two runs on one output: who goes on, who waits, who stops. Clocks are turned by hand."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import asdict, dataclass, field

import pytest

from jobs.errors import LeaseHeld, StorageError, StorageUnknown
from jobs.ledger.lease import LEASE_FOLDER, Lease, LeaseState, Timing, is_live, read_lease, take_lease
from jobs.storage.folders import Folder
from tests.jobs.object_stores import ignore_conditions


@dataclass
class Clock:
    """Time that passes only while somebody sleeps, and what happens meanwhile."""

    now: float = 1_000.0
    meanwhile: Callable[[float], None] = field(default=lambda now: None)

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.meanwhile(self.now)

    def timing(self) -> Timing:
        # No heartbeat within a test by itself: 1e6 real seconds between two.
        return Timing(clock=lambda: self.now, wall=lambda: self.now, sleep=self.sleep, beat=1e6)


@pytest.fixture
def clock() -> Clock:
    return Clock()


def elsewhere(folder: Folder, clock: Clock, generation: int = 1, **changes: object) -> LeaseState:
    """A lease of a run on another host."""
    values = {"holder": "abc", "host": "far", "space": "there", "pid": 1, "process_start": "7", "beats": 0}
    state = LeaseState(**{**values, "taken_at": clock.now, "beat_at": clock.now, **changes})
    folder.put(f"{LEASE_FOLDER}{generation:08d}.json", to_json(state))
    return state


def to_json(state: LeaseState) -> bytes:
    return json.dumps(asdict(state)).encode()


def test_a_free_output_is_taken_at_once_and_freed_at_the_end(place: str, clock: Clock) -> None:
    folder, told = Folder(place), []
    for generation in (1, 2):
        with take_lease(folder, on_wait=told.append, timing=clock.timing()) as lease:
            lease.confirm()
            assert is_live(read_lease(folder), clock.timing())
            assert folder.list(LEASE_FOLDER) == [f"{LEASE_FOLDER}{generation:08d}.json"]
        assert not is_live(read_lease(folder), clock.timing())
    assert told == []
    assert clock.now == 1_000.0


def test_a_lease_without_heartbeat_lapses_after_thirty_seconds(place: str, clock: Clock) -> None:
    folder, told = Folder(place), []
    elsewhere(folder, clock)
    with take_lease(folder, on_wait=told.append, timing=clock.timing()) as lease:
        assert 30 <= clock.now - 1_000 <= 32
        lease.confirm()
    assert len(told) == 1
    assert "process 1 on far, since 1970-01-01 00:16:40 UTC" in told[0]


def test_a_lease_that_is_renewed_is_refused(place: str, clock: Clock) -> None:
    folder = Folder(place)
    state = elsewhere(folder, clock)

    def renewed(now: float) -> None:
        if now >= 1_020:
            elsewhere(folder, clock, taken_at=state.taken_at, beats=1)

    clock.meanwhile = renewed
    says = r"another run is alive on this output \(process 1 on far"
    with pytest.raises(LeaseHeld, match=says) as caught, take_lease(folder, timing=clock.timing()):
        pytest.fail("two runs hold it")
    assert caught.value.exit_code == 1
    assert clock.now < 1_025


def test_a_lease_that_is_released_while_watched_is_taken(place: str, clock: Clock) -> None:
    folder = Folder(place)
    elsewhere(folder, clock)

    def released(now: float) -> None:
        if now == 1_005:
            elsewhere(folder, clock, released=True)

    clock.meanwhile = released
    with take_lease(folder, timing=clock.timing()):
        assert clock.now == 1_005


def test_a_lease_of_yesterday_needs_no_watching(place: str, clock: Clock) -> None:
    folder = Folder(place)
    elsewhere(folder, clock, beat_at=clock.now - 86_400)
    with take_lease(folder, timing=clock.timing()):
        assert clock.now == 1_000


@pytest.mark.parametrize("skew", [-300.0, 300.0])
def test_a_clock_that_is_minutes_off_takes_no_live_lease(place: str, clock: Clock, skew: float) -> None:
    folder = Folder(place)
    beats = 0

    def beat(now: float) -> None:
        nonlocal beats
        if now % 4 == 0:
            beats += 1
            elsewhere(folder, clock, beat_at=now + skew, beats=beats)

    elsewhere(folder, clock, beat_at=clock.now + skew)
    clock.meanwhile = beat
    with pytest.raises(LeaseHeld), take_lease(folder, timing=clock.timing()):
        pytest.fail("two runs hold it")


_HOLDER = """
import sys, time
from jobs.ledger.lease import take_lease
from jobs.storage.folders import Folder
with take_lease(Folder(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.mark.parametrize("reaped", [True, False])
def test_a_holder_killed_on_this_host_lapses_at_once(tmp_path: object, clock: Clock, reaped: bool) -> None:
    place = f"{tmp_path}/place"
    with subprocess.Popen([sys.executable, "-c", _HOLDER, place], stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        state = read_lease(Folder(place))
        assert is_live(state)
        assert state is not None
        assert state.pid == holder.pid
        holder.kill()
        if reaped:
            holder.wait()
        else:
            os.waitid(os.P_PID, holder.pid, os.WEXITED | os.WNOWAIT)  # dead, but its parent has not asked yet
        assert not is_live(state)
        with take_lease(Folder(place), timing=clock.timing()):
            assert clock.now == 1_000.0


def test_a_later_process_with_the_same_id_is_not_the_holder(place: str, clock: Clock) -> None:
    folder = Folder(place)
    with take_lease(folder, timing=clock.timing()) as lease:
        own = lease.state
    elsewhere(folder, clock, 2, host=own.host, space=own.space, pid=own.pid, process_start="1")
    with take_lease(folder, timing=clock.timing()):
        assert clock.now == 1_000.0


def test_a_holder_whose_process_is_hidden_is_not_known_to_be_dead(
    place: str, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of another user on this host, under a /proc that shows each user's own processes only."""
    folder = Folder(place)
    with take_lease(folder, timing=clock.timing()) as lease:
        own = lease.state

    def hidden(pid: int, number: int) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr("jobs.ledger.lease.os.kill", hidden)
    elsewhere(folder, clock, 2, host=own.host, space=own.space, pid=2**22 - 1, process_start="1")
    with take_lease(folder, timing=clock.timing()):
        assert clock.now >= 1_030


def test_a_listing_that_stays_behind_is_looked_at_for_ever(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = Folder(place)
    monkeypatch.setattr(Folder, "list", lambda self, prefix="": [f"{LEASE_FOLDER}00000001.json"])
    with pytest.raises(StorageError, match="again and again"):
        read_lease(folder)


def test_the_same_process_id_in_another_container_is_not_known_to_be_dead(place: str, clock: Clock) -> None:
    folder = Folder(place)
    with take_lease(folder, timing=clock.timing()) as lease:
        own = lease.state
    elsewhere(folder, clock, 2, host=own.host, space="another", pid=2**22 - 1, process_start="1")
    with take_lease(folder, timing=clock.timing()):
        assert clock.now >= 1_030


def test_who_lost_the_lease_learns_it_before_the_next_step(place: str, clock: Clock) -> None:
    folder = Folder(place)
    with take_lease(folder, timing=clock.timing()) as lease:
        lease.confirm()
        clock.now += 29  # the process was stopped, another one watched for 30 s and took over
        elsewhere(folder, clock, 2)
        with pytest.raises(LeaseHeld, match="lost the output, another run has taken over \\(process 1 on far"):
            lease.confirm()
        assert lease.lost is not None
    assert read_lease(folder) == elsewhere(folder, clock, 2)  # and it did not free what is not its own


def test_an_outage_longer_than_the_lease_ends_no_run_while_nobody_takes_over(
    place: str, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Folder(place)
    with take_lease(folder, timing=clock.timing()) as lease:
        with monkeypatch.context() as patch:
            patch.setattr(Folder, "put", _unknown)
            for _ in range(3):
                clock.now += 31
                with pytest.raises(StorageUnknown):
                    lease.renew()
                assert lease.lost is None
            with pytest.raises(StorageUnknown):
                lease.confirm()  # a step that depends on the lease is not taken
        lease.confirm()
        assert is_live(read_lease(folder), clock.timing())


def test_a_lease_that_was_taken_during_an_outage_is_lost(
    place: str, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Folder(place)
    with take_lease(folder, timing=clock.timing()) as lease:
        clock.now += 100
        with take_lease(folder, timing=Timing(stale=-1e9, beat=1e6)):
            assert lease.lost is None  # it has not asked yet
            lease.renew()
            assert lease.lost is not None


def test_a_lapsed_lease_that_is_taken_while_it_is_renewed_is_lost(
    place: str, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other one has seen it unchanged for 30 s, and creates its own between the look and the write."""
    folder = Folder(place)
    put = Folder.put

    with take_lease(folder, timing=clock.timing()) as lease, monkeypatch.context() as patch:

        def overtaken(self: Folder, name: str, data: bytes) -> None:
            patch.undo()
            elsewhere(folder, clock, 2)
            put(self, name, data)

        clock.now += 31
        patch.setattr(Folder, "put", overtaken)
        with pytest.raises(LeaseHeld, match="another run has taken over"):
            lease.confirm()


def _unknown(self: Folder, name: str, data: bytes) -> None:
    raise StorageUnknown("timed out")


def test_the_heartbeat_renews_and_stops_with_the_run(place: str) -> None:
    folder = Folder(place)
    beaten = threading.Event()
    plain = Lease.renew

    class Watched(Lease):
        def renew(self) -> None:
            plain(self)
            if self.state.beats >= 3:
                beaten.set()

    with take_lease(folder, timing=Timing(beat=0.01)) as lease:
        lease.__class__ = Watched
        assert beaten.wait(30)
    state = read_lease(folder)
    assert state is not None
    assert state.released
    assert state.beats >= 3
    assert not any(thread.name == "lease" for thread in threading.enumerate())


def test_a_failed_heartbeat_does_not_end_the_thread(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, failed, recovered = Folder(place), threading.Event(), threading.Event()
    put = Folder.put

    def sometimes(self: Folder, name: str, data: bytes) -> None:
        if not failed.is_set():
            failed.set()
            raise StorageError("one time")
        put(self, name, data)
        recovered.set()

    with take_lease(folder, timing=Timing(beat=0.01)):
        monkeypatch.setattr(Folder, "put", sometimes)
        assert failed.wait(30)
        assert recovered.wait(30)


def test_of_two_that_find_a_lapsed_lease_one_takes_it(place: str, clock: Clock) -> None:
    folder = Folder(place)
    elsewhere(folder, clock, beat_at=0)
    barrier, outcomes = threading.Barrier(4), []
    done = threading.Barrier(4)

    def run() -> None:
        own = Folder(place)
        own.can_create()
        barrier.wait()
        timing = Timing(poll=0.01, beat=0.02, settle=0.2)
        try:
            with take_lease(own, timing=timing) as lease:
                outcomes.append(lease.state.holder)
                done.wait(30)
        except LeaseHeld:
            outcomes.append("refused")
            done.wait(30)

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert outcomes.count("refused") == 3


# --- stores without put-if-absent -------------------------------------------------------------------------------------


@pytest.fixture
def blind_place(place: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """A store that silently overwrites."""
    ignore_conditions(monkeypatch)
    return place


def test_without_put_if_absent_the_smaller_name_holds_and_the_other_waits(blind_place: str, clock: Clock) -> None:
    folder = Folder(blind_place)

    def rival(now: float) -> None:
        if now == 1_002.0:  # within the settling time
            folder.put(f"{LEASE_FOLDER}00000001-0.json", to_json(rival_state(clock)))

    clock.meanwhile = rival
    with take_lease(folder, timing=clock.timing()) as lease:
        assert clock.now > 1_030  # it saw the rival, watched it, and took the next generation
        lease.confirm()
        assert [name[: len(LEASE_FOLDER) + 9] for name in folder.list(LEASE_FOLDER)] == [f"{LEASE_FOLDER}00000002-"]


def test_without_put_if_absent_one_who_looked_too_early_stops(blind_place: str, clock: Clock) -> None:
    folder = Folder(blind_place)
    with take_lease(folder, timing=clock.timing()) as lease:
        lease.confirm()
        folder.put(f"{LEASE_FOLDER}00000001-0.json", to_json(rival_state(clock)))
        with pytest.raises(LeaseHeld):
            lease.confirm()


def rival_state(clock: Clock) -> LeaseState:
    return LeaseState(
        holder="0", host="far", space="x", pid=1, process_start="7", taken_at=clock.now, beat_at=clock.now, beats=0
    )


def test_an_object_that_is_no_lease_says_how_to_go_on(place: str, clock: Clock) -> None:
    folder = Folder(place)
    folder.put(f"{LEASE_FOLDER}00000001.json", b"{}")
    with pytest.raises(StorageError, match=r"00000001.json is no lease.*delete it"):
        read_lease(folder)
