"""Object stores that throttle, break connections and die: nothing torn or lost, nothing said but what is known."""

from __future__ import annotations

import os
import signal
import threading
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from jobs.errors import JobError, StorageError, StorageUnknown
from jobs.finish import finalise
from jobs.ledger.lease import Timing, take_lease
from jobs.storage import s3 as s3_room
from jobs.storage.folders import Folder
from jobs.storage.inputs import expand, open_input, stat_input
from jobs.storage.patience import PATIENT, Patience
from jobs.storage.s3 import part_bytes
from jobs.verify.verify import verify
from tests.jobs.fault_proxy import FaultProxy, Faults
from tests.jobs.made_job import make_all, start, write_manifest
from tests.jobs.object_stores import Endpoint, RcloneServer

QUICK = Patience(first_wait=0.01, longest_wait=0.1, total=20.0)
HASTY = Patience(first_wait=0.01, longest_wait=0.02, total=0.1)
ALL_KINDS = Faults(slow_down=0.08, reset_before=0.05, reset_after=0.08, cut=0.05, delay=0.1, delay_seconds=0.02)
MIB = 1 << 20


@pytest.fixture(scope="module")
def kept_proxy(s3_endpoint: Endpoint) -> Iterator[FaultProxy]:
    # One port for all tests: a client for each would take longer than they do.
    with FaultProxy(s3_endpoint.url, seed=5) as proxy:
        yield proxy


@pytest.fixture
def proxy(kept_proxy: FaultProxy) -> FaultProxy:
    """A proxy before moto's server, without faults so far."""
    kept_proxy.reset()
    return kept_proxy


@pytest.fixture
def bucket(s3_endpoint: Endpoint) -> str:
    return s3_endpoint.make_bucket()


@pytest.fixture
def folder(proxy: FaultProxy, bucket: str) -> Folder:
    """A folder behind the proxy that its client has reached once."""
    folder = Folder(f"{bucket}/place", Endpoint(proxy.endpoint).options(), patience=QUICK)
    assert folder.list() == []
    return folder


@pytest.fixture
def direct(s3_endpoint: Endpoint, bucket: str) -> Folder:
    """The same folder, past the proxy."""
    return Folder(f"{bucket}/place", s3_endpoint.options())


def uploads(endpoint: Endpoint, bucket: str) -> int:
    """Multipart uploads that were neither completed nor aborted."""
    with urllib.request.urlopen(f"{endpoint.url}/{bucket.removeprefix('s3://')}?uploads") as answer:
        listing = answer.read()
    assert b"ListMultipartUploadsResult" in listing
    return int(listing.count(b"<UploadId>"))


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Multipart from 5 MiB on, which is the least that S3 takes."""
    monkeypatch.setattr(s3_room, "PART_BYTES", 5 * MIB)
    monkeypatch.setattr(s3_room, "WHOLE_BYTES", 5 * MIB)


# --- a bad connection -------------------------------------------------------------------------------------------------


def test_everything_works_through_a_bad_connection(
    folder: Folder, direct: Folder, proxy: FaultProxy, bucket: str
) -> None:
    proxy.faults = ALL_KINDS
    data = {f"a/{number:02d}": bytes([number]) * 3_000 for number in range(16)}
    for name, content in data.items():
        folder.put(name, content)
    assert folder.list("a/") == sorted(data)
    for name, content in data.items():
        assert folder.read(name) == content
        assert folder.size(name) == len(content)
        with folder.open(name) as file:
            assert file.read(1_000) + file.read() == content
    options = Endpoint(proxy.endpoint).options()
    assert len(expand(f"{bucket}/place/a/*", options, patience=QUICK)) == 16
    assert stat_input(f"{bucket}/place/a/07", options, patience=QUICK).size == 3_000
    with open_input(f"{bucket}/place/a/07", options, patience=QUICK) as file:
        assert file.read() == data["a/07"]
    for name in data:
        folder.delete(name)
    assert direct.list() == []
    assert all(proxy.met[kind] > 3 for kind in ("slow_down", "reset_before", "reset_after", "cut"))


def test_a_first_try_costs_one_request(folder: Folder, proxy: FaultProxy) -> None:
    folder.put("a", b"x")
    for act in (
        lambda: folder.read("a"),
        lambda: folder.put("a", b"y"),
        lambda: folder.list(),
        lambda: folder.size("a"),
    ):
        before = proxy.met["requests"]
        act()
        assert proxy.met["requests"] == before + 1


def test_a_create_under_faults_has_exactly_one_winner(
    s3_endpoint: Endpoint, folder: Folder, direct: Folder, proxy: FaultProxy, bucket: str
) -> None:
    proxy.faults = replace(ALL_KINDS, reset_after=0.3)
    writers = [Folder(f"{bucket}/place", Endpoint(proxy.endpoint).options(), patience=QUICK) for _ in range(4)]
    assert all(writer.can_create() for writer in writers)
    for number in range(5):
        won: list[int] = []

        def race(own: int, number: int = number, won: list[int] = won) -> None:
            if writers[own].create(f"record-{number}", f"from {own}".encode()):
                won.append(own)

        threads = [threading.Thread(target=race, args=(own,)) for own in range(len(writers))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(won) == 1
        assert direct.read(f"record-{number}") == f"from {won[0]}".encode()
    assert len(direct.list()) == 5  # the probes are gone
    assert proxy.met["reset_after"] > 5


def test_a_create_that_finds_its_own_lost_try_has_won(folder: Folder, proxy: FaultProxy) -> None:
    assert folder.can_create()
    proxy.next("reset_after", "PUT", "record")
    assert folder.create("record", b"mine")
    assert not folder.create("record", b"other")


def test_a_probe_whose_answers_are_lost_finds_the_truth(
    proxy: FaultProxy, bucket: str, direct: Folder, rclone: RcloneServer
) -> None:
    options = Endpoint(proxy.endpoint).options()
    proxy.next("reset_after", "PUT", ".probe", times=2)
    assert Folder(f"{bucket}/place", options, patience=QUICK).can_create()
    proxy.next("slow_down", "DELETE", ".probe")
    assert Folder(f"{bucket}/place", options, patience=QUICK).can_create()
    assert direct.list() == []
    blind = rclone.make_bucket()
    with FaultProxy(rclone.endpoint.url) as other:
        other.next("reset_after", "PUT", ".probe", times=2)
        folder = Folder(blind, Endpoint(other.endpoint).options(), patience=QUICK)
        assert not folder.can_create()
        with pytest.raises(StorageError, match="no atomic put-if-absent"):
            folder.create("record", b"x")
        assert folder.list() == []


def test_an_outcome_that_is_not_known_is_never_said_to_be(folder: Folder, direct: Folder, proxy: FaultProxy) -> None:
    hasty = folder.with_patience(HASTY)
    proxy.faults = Faults(reset_after=1.0)
    with pytest.raises(StorageUnknown, match="may have been written"):
        hasty.put("landed", b"x")
    proxy.faults = Faults(reset_before=1.0)
    with pytest.raises(StorageUnknown):
        hasty.put("vanished", b"x")
    with pytest.raises(StorageUnknown):
        hasty.delete("landed")
    with pytest.raises(StorageError, match="tries in"):
        hasty.read("landed")
    assert direct.list() == ["landed"]


def test_a_wrong_address_says_so_within_seconds(bucket: str, proxy: FaultProxy) -> None:
    nowhere = Endpoint("http://127.0.0.1:1").options()
    hasty = replace(PATIENT, stranger=0.3)
    for look in (
        lambda: Folder(bucket, nowhere, patience=hasty).list(),
        lambda: expand(bucket, nowhere, patience=hasty),
    ):
        began = time.monotonic()
        with pytest.raises(StorageError, match=r"Could not connect.*tries in \d+ s; check the address \(endpoint_url"):
            look()
        assert time.monotonic() - began < PATIENT.total / 4


def test_a_heartbeat_does_not_wait_for_minutes(folder: Folder, proxy: FaultProxy) -> None:
    with take_lease(folder, timing=Timing(beat=0.3)) as lease:
        proxy.faults = Faults(slow_down=1.0)
        began = time.monotonic()
        with pytest.raises(JobError):
            lease.renew()
        assert time.monotonic() - began < QUICK.total / 4
        proxy.faults = Faults()
        lease.renew()
        assert lease.lost is None


def test_a_whole_job_is_committed_through_a_bad_connection(
    proxy: FaultProxy, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Endpoint(proxy.endpoint).use(monkeypatch)
    manifest = write_manifest(tmp_path / "manifest.parquet")
    proxy.faults = Faults(slow_down=0.03, reset_before=0.02, reset_after=0.04, cut=0.02)
    ledger = start(f"{bucket}/out", manifest)
    make_all(ledger)
    finalise(ledger)
    assert verify(f"{bucket}/out").findings == []
    assert proxy.met["reset_after"] > 1


# --- a store that dies ------------------------------------------------------------------------------------------------


def test_a_store_that_was_killed_is_waited_for_and_has_what_it_had(rclone: RcloneServer) -> None:
    folder = Folder(f"{rclone.make_bucket()}/place", rclone.endpoint.options(), patience=QUICK)
    folder.put("before", b"x" * 10_000)
    rclone.kill()
    back = threading.Timer(0.4, rclone.start)
    back.start()
    folder.put("while", b"y")
    back.join()
    rclone.kill()
    back = threading.Timer(0.4, rclone.start)
    back.start()
    assert folder.read("before") == b"x" * 10_000
    back.join()
    assert folder.list() == ["before", "while"]


def test_a_listing_of_many_pages_survives_trouble_on_each(rclone: RcloneServer, tmp_path: Path) -> None:
    rclone.kill()
    bucket = rclone.make_bucket()
    place = tmp_path / "rclone" / bucket.removeprefix("s3://") / "place" / "a"
    place.mkdir(parents=True)
    names = [f"a/{number:04d}" for number in range(2_100)]
    for name in names:
        (place.parent / name).touch()
    rclone.start()
    with FaultProxy(rclone.endpoint.url) as proxy:
        folder = Folder(f"{bucket}/place", Endpoint(proxy.endpoint).options(), patience=QUICK)
        proxy.next("slow_down", "GET", "list-type", times=2)
        proxy.next("cut", "GET", "continuation-token", times=2)
        assert folder.list("a/") == names
        assert folder.list("a/20") == [name for name in names if name.startswith("a/20")]
        assert proxy.met["cut"] == 2


# --- uploads in parts -------------------------------------------------------------------------------------------------


def test_no_object_has_too_many_or_too_small_parts() -> None:
    for size in (33 * MIB, 1 << 30, 100 * 10**9, 5 * 10**12):
        assert 5 * MIB <= part_bytes(size) <= 5 << 30
        assert -(-size // part_bytes(size)) < 10_000


@pytest.mark.usefixtures("small_parts")
def test_an_upload_in_parts_through_a_bad_connection_is_whole(
    folder: Folder, direct: Folder, proxy: FaultProxy, s3_endpoint: Endpoint, bucket: str, tmp_path: Path
) -> None:
    data = os.urandom(12 * MIB + 1)
    (tmp_path / "shard").write_bytes(data)
    proxy.next("reset_after", "PUT", "partNumber=1")
    proxy.next("slow_down", "PUT", "partNumber=2")
    proxy.next("reset_before", "PUT", "partNumber=3")
    proxy.next("reset_after", "POST", "uploadId")
    folder.upload("audio/shard", tmp_path / "shard")
    assert direct.read("audio/shard") == data
    assert sum(proxy.met[kind] for kind in ("reset_after", "reset_before", "slow_down")) == 4
    assert uploads(s3_endpoint, bucket) == 0
    folder.put("audio/other", data)
    assert direct.read("audio/other") == data


@pytest.mark.usefixtures("small_parts")
def test_an_upload_whose_completion_was_not_answered_is_found_complete(rclone: RcloneServer) -> None:
    bucket, data = rclone.make_bucket(), os.urandom(6 * MIB)
    with FaultProxy(rclone.endpoint.url) as proxy:
        folder = Folder(bucket, Endpoint(proxy.endpoint).options(), patience=QUICK)
        proxy.next("reset_after", "POST", "uploadId")
        folder.put("shard", data)  # asked again, this server says that there is no such upload
        assert folder.read("shard") == data
        assert proxy.met["reset_after"] == 1


@pytest.mark.usefixtures("small_parts")
@pytest.mark.parametrize(("method", "part"), [("PUT", "partNumber=2"), ("POST", "uploadId")])
def test_an_upload_that_fails_is_aborted(
    folder: Folder, direct: Folder, proxy: FaultProxy, s3_endpoint: Endpoint, bucket: str, method: str, part: str
) -> None:
    proxy.next("slow_down", method, part, times=1_000)
    with pytest.raises(JobError, match="reduce your request rate"):
        folder.with_patience(HASTY).put("audio/shard", bytes(12 * MIB))
    assert direct.list() == []
    assert uploads(s3_endpoint, bucket) == 0


@pytest.mark.usefixtures("small_parts")
def test_an_upload_that_is_interrupted_is_aborted(
    folder: Folder, s3_endpoint: Endpoint, direct: Folder, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    choose = FaultProxy.choose

    def interrupting(self: FaultProxy, method: str, path: str) -> Any:
        if "partNumber=2" in path:
            os.kill(os.getpid(), signal.SIGINT)
        return choose(self, method, path)

    with monkeypatch.context() as patch:
        patch.setattr(FaultProxy, "choose", interrupting)
        with pytest.raises(KeyboardInterrupt):
            folder.put("audio/shard", bytes(22 * MIB))
    assert direct.list() == []
    assert uploads(s3_endpoint, bucket) == 0


@pytest.mark.usefixtures("small_parts")
def test_a_file_that_is_written_while_it_is_uploaded_is_not_published(
    folder: Folder, direct: Folder, s3_endpoint: Endpoint, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "shard").write_bytes(bytes(12 * MIB))
    begun = os.fstat

    def cut(handle: int) -> os.stat_result:
        found = begun(handle)
        os.truncate(tmp_path / "shard", 6 * MIB)
        return found

    monkeypatch.setattr(s3_room.os, "fstat", cut)
    with pytest.raises(StorageError, match="changed while it was uploaded"):
        folder.upload("audio/shard", tmp_path / "shard")
    assert direct.list() == []
    assert uploads(s3_endpoint, bucket) == 0


# --- credentials ------------------------------------------------------------------------------------------------------


def test_a_refused_request_shows_no_credentials(rclone: RcloneServer, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG", logger="jobs")
    bucket = rclone.make_bucket()
    wrong = rclone.endpoint.options() | {"secret": "a-wrong-secret", "key": "a-wrong-key", "token": "a-session-token"}
    texts = []
    for act in (lambda f: f.read("a"), lambda f: f.put("a", b"x"), lambda f: f.list(), lambda f: f.size("a")):
        with pytest.raises(JobError) as caught:
            act(Folder(bucket, wrong, patience=HASTY))
        texts.append(str(caught.value))
    with pytest.raises(JobError) as caught:
        stat_input(f"{bucket}/a", wrong, patience=HASTY)
    for text in [*texts, str(caught.value), caplog.text]:
        assert not any(secret in text for secret in ("a-wrong-secret", "a-wrong-key", "a-session-token"))
