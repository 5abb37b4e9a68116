"""Writers that are killed, fail or lose their answers: whole or not at all, and nothing is said that is not known."""

from __future__ import annotations

import errno
import glob
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from jobs.errors import InputError, StorageError, StorageUnknown
from jobs.storage import stores
from jobs.storage.folders import Folder
from jobs.storage.s3 import S3Store

_WRITER = """
import sys
from jobs.storage.folders import Folder
folder = Folder(sys.argv[1])
assert folder.can_create()  # a probe cut short would stay
print("ready", flush=True)
number = 0
while True:
    number += 1
    folder.put("record", bytes([number % 251]) * 3_000_000)
    folder.create(f"made-{number}", bytes([number % 251]) * 3_000_000)
"""


def test_a_killed_writer_leaves_no_visible_torn_file(tmp_path: Path) -> None:
    for kill in range(4):
        place = tmp_path / str(kill)
        with subprocess.Popen([sys.executable, "-c", _WRITER, str(place)], stdout=subprocess.PIPE) as writer:
            assert writer.stdout is not None
            writer.stdout.readline()
            time.sleep(0.05 + 0.037 * kill)
            writer.send_signal(signal.SIGKILL)
        folder = Folder(str(place))
        for name in folder.list():
            data = folder.read(name)
            assert len(data) == 3_000_000
            assert len(set(data)) == 1
        assert not glob.glob(str(place / "*.part"))  # a glob by a user sees no unfinished file either
        folder.delete_partial()
        assert sorted(os.listdir(place)) == folder.list()


def test_an_upload_that_fails_midway_leaves_nothing(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Folder(place)
    folder.put("kept", b"x")
    with pytest.raises(StorageError):
        folder.upload("audio/1", tmp_path / "absent")
    monkeypatch.setattr(stores.shutil, "copyfileobj", _fail)
    if not place.startswith(("memory", "s3")):
        (tmp_path / "source").write_bytes(b"x" * 100)
        with pytest.raises(StorageError, match="No space left"):
            folder.upload("audio/1", tmp_path / "source")
        assert os.listdir(Path(place) / "audio") == []
    assert folder.list() == ["kept"]


def _fail(*args: object, **settings: object) -> None:
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize("code", [errno.EIO, errno.ETIMEDOUT, errno.ESTALE, errno.ENOENT])
def test_a_network_file_system_that_loses_its_answer_is_not_said_to_have_written_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    link = os.link

    def landed(source: Path, target: Path) -> None:
        link(source, target)
        raise OSError(code, os.strerror(code))

    folder = Folder(str(tmp_path))
    assert folder.can_create()
    monkeypatch.setattr(stores.os, "replace", landed)
    with pytest.raises(StorageUnknown):
        folder.put("put", b"x")
    monkeypatch.setattr(stores.os, "link", landed)
    assert folder.create("created", b"x")  # looked at again, and found to be one's own


def test_a_file_that_was_placed_is_not_lost_over_the_name_it_had_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Folder(str(tmp_path))
    assert folder.can_create()
    with monkeypatch.context() as patch:
        patch.setattr(stores.Path, "unlink", _fail)
        assert folder.create("made", b"x")
    assert folder.list() == ["made"]
    (tmp_path / ".holiday.part").write_bytes(b"somebody's")
    folder.delete_partial()
    assert sorted(os.listdir(tmp_path)) == [".holiday.part", "made"]


@pytest.mark.parametrize("how", ["put", "create", "upload"])
def test_a_pipe_or_a_device_is_replaced_by_a_file(how: str, tmp_path: Path) -> None:
    """As root ``--out /dev/null`` would take the device from the whole system."""
    os.mkfifo(tmp_path / "null")
    (tmp_path / "source").write_bytes(b"x")
    folder = Folder(str(tmp_path))
    given = tmp_path / "source" if how == "upload" else b"x"
    with pytest.raises(StorageError, match="it is a device or a pipe"):
        getattr(folder, how)("null", given)
    assert (tmp_path / "null").is_fifo()


def test_a_folder_that_cannot_be_listed_is_taken_for_an_empty_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "audio").mkdir()

    def stale(path: object) -> None:
        raise OSError(errno.ESTALE, "Stale file handle", str(path))

    monkeypatch.setattr(stores.os, "scandir", stale)
    with pytest.raises(StorageError, match="Stale file handle"):
        Folder(str(tmp_path)).list("audio/")


@pytest.mark.parametrize("url", ["local:///tmp/out", "ftp://127.0.0.1/out"])
def test_an_output_where_a_killed_writer_leaves_torn_files_is_refused(url: str) -> None:
    with pytest.raises(InputError, match="torn file"):
        Folder(url)


def test_a_put_whose_answer_is_lost_is_unknown_and_not_failed(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = Folder(f"{s3}/place")
    put = S3Store.put

    def landed_then_lost(self: Any, name: str, data: bytes) -> None:
        put(self, name, data)
        raise TimeoutError("read timed out")

    monkeypatch.setattr(S3Store, "put", landed_then_lost)
    with pytest.raises(StorageUnknown, match="may have been written"):
        folder.put("audio/1", b"x")
    assert folder.read("audio/1") == b"x"


def test_a_create_whose_answer_is_lost_is_asked_for_again(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, other = Folder(f"{s3}/place"), Folder(f"{s3}/place")
    assert folder.can_create()
    assert other.can_create()
    create = S3Store.create

    def lost(self: Any, name: str, data: bytes) -> None:
        if "landed" in name:
            create(self, name, data)
        raise ConnectionResetError("connection reset by peer")

    assert other.create("taken-landed", b"other")
    monkeypatch.setattr(S3Store, "create", lost)
    assert folder.create("landed", b"mine")
    with pytest.raises(StorageUnknown):
        folder.create("vanished", b"mine")
    monkeypatch.setattr(S3Store, "create", create)
    assert not folder.create("taken-landed", b"mine")


def test_a_bucket_that_does_not_exist_surely_got_nothing(s3: str) -> None:
    with pytest.raises(StorageError, match="bucket does not exist"):
        Folder("s3://no-such-bucket-of-ours/place").put("a", b"x")


def test_a_folder_without_rights_surely_got_nothing() -> None:
    with pytest.raises(StorageError, match="cannot write /proc/self/place/a"):
        Folder("/proc/self/place").put("a", b"x")
