"""The same promises over a local folder, memory and S3."""

from __future__ import annotations

import errno
import glob
import io
import logging
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import pytest

from jobs.errors import InputError, StorageError, StorageUnknown
from jobs.storage import stores
from jobs.storage.folders import Folder
from jobs.storage.inputs import expand, open_input, stat_input
from jobs.storage.patience import Patience
from jobs.storage.s3 import S3Store
from jobs.storage.urls import absolute_url, options_for
from tests.jobs.conftest import STORES, place_in
from tests.jobs.object_stores import STORE_CLASSES, RcloneServer, ignore_conditions


@pytest.fixture(scope="module")
def rclone_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RcloneServer]:
    with RcloneServer(tmp_path_factory.mktemp("rclone")) as server:
        yield server


@pytest.fixture(params=[*STORES, "rclone"])
def any_place(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The URL of an empty folder in each kind of store, one without put-if-absent among them."""
    if request.param != "rclone":
        return str(place_in(request.param, request))
    server = request.getfixturevalue("rclone_server")
    server.endpoint.use(monkeypatch)
    return f"{server.make_bucket()}/place"


# --- the same everywhere ----------------------------------------------------------------------------------------------


def test_what_was_put_is_read_listed_sized_and_deleted(any_place: str, tmp_path: Path) -> None:
    folder = Folder(any_place)
    folder.put("a/x.bin", b"one")
    folder.put("a/b/y.bin", b"two!")
    folder.put("top.bin", b"")
    source = tmp_path / "source.bin"
    source.write_bytes(bytes(range(256)) * 4_096)
    folder.upload("a/big.bin", source)

    assert folder.list() == ["a/b/y.bin", "a/big.bin", "a/x.bin", "top.bin"]
    assert folder.list("a/b") == ["a/b/y.bin", "a/big.bin"]
    assert folder.list("a/b/") == ["a/b/y.bin"]
    assert folder.read("a/b/y.bin") == b"two!"
    assert folder.read("top.bin") == b""
    assert folder.list("a/bi") == ["a/big.bin"]
    assert folder.size("a/big.bin") == 1 << 20
    assert folder.read("a/big.bin", 254, 258) == bytes([254, 255, 0, 1])
    assert folder.read("a/big.bin", (1 << 20) - 2) == bytes([254, 255])
    with folder.open("a/big.bin") as file:
        file.seek(-3, 2)
        assert file.read() == bytes([253, 254, 255])
    folder.put("a/x.bin", b"replaced")
    assert folder.read("a/x.bin") == b"replaced"
    folder.delete("a/x.bin")
    assert not folder.exists("a/x.bin")
    assert folder.exists("a/big.bin")
    folder.delete("a/x.bin")  # once more is no error


def test_what_is_absent_is_not_found(any_place: str) -> None:
    folder = Folder(any_place)
    assert folder.list() == []
    assert folder.list("nowhere/") == []
    assert not folder.exists("nothing")
    for look in (folder.read, folder.size, folder.open):
        with pytest.raises(FileNotFoundError, match="nothing"):
            look("nothing")
    folder.put("a/b", b"x")
    assert not folder.exists("a")  # a folder is no object


def test_a_listing_is_never_an_old_one(any_place: str) -> None:
    reader, writer = Folder(any_place), Folder(any_place)
    assert reader.list() == []
    assert not reader.exists("ledger/1")
    writer.put("ledger/1", b"1")
    assert reader.list() == ["ledger/1"]
    assert reader.exists("ledger/1")
    writer.put("ledger/2", b"2")
    writer.delete("ledger/1")
    assert reader.list("ledger/") == ["ledger/2"]
    assert reader.size("ledger/2") == 1
    writer.put("ledger/2", b"longer")
    assert reader.size("ledger/2") == 6


def test_of_two_creates_the_first_stays(place: str) -> None:
    one, two = Folder(place), Folder(place)
    assert one.create("c/record", b"from one")
    assert not two.create("c/record", b"from two")
    assert two.read("c/record") == b"from one"
    assert one.create("c/record", b"from one")  # one's own, found again after a lost answer
    assert one.list() == ["c/record"]  # probes leave nothing


def test_of_many_creates_at_once_exactly_one_wins(place: str) -> None:
    folders = [Folder(place) for _ in range(8)]
    for folder in folders:
        assert folder.can_create()
    barrier = threading.Barrier(len(folders))
    won: list[int] = []

    def race(number: int) -> None:
        barrier.wait()
        if folders[number].create("record", f"from {number}".encode()):
            won.append(number)

    threads = [threading.Thread(target=race, args=(number,)) for number in range(len(folders))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1
    assert folders[0].read("record") == f"from {won[0]}".encode()


def test_a_store_that_ignores_the_condition_is_found_out(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ignore_conditions(monkeypatch)
    folder = Folder(place)
    assert not folder.can_create()
    with pytest.raises(StorageError, match="no atomic put-if-absent"):
        folder.create("record", b"x")
    assert folder.list() == []


def test_the_probe_is_made_once_per_folder(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    probes: list[str] = []
    for store in STORE_CLASSES:
        create = store.create

        def counted(self: Any, name: str, data: bytes, create: Any = create) -> None:
            probes.extend([name] if ".probe" in name else [])
            create(self, name, data)

        monkeypatch.setattr(store, "create", counted)
    folder = Folder(place)
    for number in range(3):
        assert folder.create(f"record-{number}", b"x")
    assert len(probes) == 2


@pytest.mark.parametrize("name", ["", "/etc/passwd", "../up", "a/../../up", "a//b", "a/", "./a"])
def test_no_name_leaves_its_folder(place: str, name: str) -> None:
    folder = Folder(place)
    for act in (folder.read, folder.size, folder.delete, lambda n: folder.put(n, b"x")):
        with pytest.raises(StorageError, match="not a name inside a folder"):
            act(name)


def test_inputs_are_found_by_file_folder_and_glob(any_place: str) -> None:
    folder = Folder(any_place)
    for name in ("m/b.parquet", "m/a.parquet", "m/deep/c.PARQUET", "m/_SUCCESS", "m/.hidden.parquet", "m/notes.txt"):
        folder.put(name, b"12345")
    root = absolute_url(any_place)
    assert expand(f"{root}/m/a.parquet") == [f"{root}/m/a.parquet"]
    assert expand(f"{root}/m/*.parquet") == [f"{root}/m/a.parquet", f"{root}/m/b.parquet"]
    found = expand(f"{root}/m", suffixes=(".parquet",))
    assert found == [f"{root}/m/a.parquet", f"{root}/m/b.parquet", f"{root}/m/deep/c.PARQUET"]
    assert f"{root}/m/notes.txt" in expand(f"{root}/m")
    for nothing in (f"{root}/absent.parquet", f"{root}/m/*.csv", f"{root}/nowhere"):
        with pytest.raises(InputError, match="no such file"):
            expand(nothing)
    with pytest.raises(InputError, match=r"no \.csv file: .*/m"):
        expand(f"{root}/m", suffixes=(".csv",))


def test_an_input_that_was_written_again_has_another_etag(any_place: str) -> None:
    folder = Folder(any_place)
    folder.put("in.bin", b"first")
    url = f"{absolute_url(any_place)}/in.bin"
    before = stat_input(url)
    assert (before.url, before.size) == (url, 5)
    assert stat_input(url) == before
    with open_input(url) as file:
        assert file.read() == b"first"
    time.sleep(0.01)
    folder.put("in.bin", b"other")
    assert stat_input(url).etag != before.etag
    for look in (stat_input, open_input):
        with pytest.raises(FileNotFoundError):
            look(f"{url}.absent")


# --- kills and faults -------------------------------------------------------------------------------------------------

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


# --- credentials ------------------------------------------------------------------------------------------------------


def test_storage_options_reach_the_store_and_no_message(
    s3: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, logger="jobs")
    endpoint = os.environ["AWS_ENDPOINT_URL"]
    for name in ("AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    options = {"key": "AKIAEXAMPLE", "secret": "a-secret-of-mine", "client_kwargs": {"endpoint_url": endpoint}}
    folder = Folder(f"{s3}/place", options)
    folder.put("a", b"x")
    assert folder.read("a") == b"x"
    monkeypatch.setattr(S3Store, "put", _leak)
    with pytest.raises(StorageError) as caught:
        folder.put("b", b"x")
    logged = "".join(traceback.format_exception(caught.value))
    for text in (str(caught.value), logged, repr(folder), caplog.text):
        assert "a-secret-of-mine" not in text
        assert "AKIAEXAMPLE" not in text
    with pytest.raises(TypeError, match="not pickled"):
        pickle.dumps(folder)


def _leak(self: object, name: str, data: bytes) -> None:
    raise PermissionError("signature of AKIAEXAMPLE with a-secret-of-mine is wrong")


def test_a_wrong_storage_option_is_bad_input_by_its_name(s3: str) -> None:
    with pytest.raises(InputError) as caught:
        Folder(s3, {"secrett": "a-secret-of-mine", "endpoint_ulr": "x"}).list()
    assert "secrett" in str(caught.value)
    assert "a-secret-of-mine" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("https://me:hunter22@host/m.parquet", "carries credentials"),
        ("https://b.s3.amazonaws.com/m?X-Amz-Signature=hunter22", "signed one"),
        ("https://storage.googleapis.com/b/m?X-Goog-Algorithm=a&X-Goog-Signature=hunter22", "signed one"),
        ("https://storage.googleapis.com/b/m?GoogleAccessId=hunter22", "signed one"),
        ("https://d1.cloudfront.net/m?Key-Pair-Id=hunter22", "signed one"),
        ("https://d1.cloudfront.net/m?Policy=hunter22", "signed one"),
        ("https://b.oss-cn-x.aliyuncs.com/m?x-oss-signature=hunter22", "signed one"),
        ("https://host/m?download=1&token=hunter22", "signed one"),
        ("https://host/m?download=1;Access_Token=hunter22", "signed one"),
        ("https://host/m?%74oken=hunter22", "signed one"),
        ("https://host/m?api_key=hunter22", "signed one"),
        ("https://host/m#access_token=hunter22", "signed one"),
        ("simplecache::s3://bucket/m.parquet", "chained"),
        ("s3://me:hunter22@℀/m", "malformed"),
        ("http://[::1/hunter22", "malformed"),
        ("", "empty path"),
    ],
)
def test_a_url_that_would_store_a_secret_is_refused(url: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        absolute_url(url)
    assert "hunter22" not in str(caught.value)


def test_a_plain_query_or_a_glob_passes_for_a_secret() -> None:
    for url in ("https://host/m.parquet?download=true&max_tokens=3", "s3://bucket/token-?.parquet", "s3://b/sig=1/m"):
        assert absolute_url(url) == url


@pytest.mark.parametrize("text", ["/tmp/a\0b", "~\0", "s3://bucket/\udcff"])
def test_what_no_file_can_be_called_is_bad_input(text: str) -> None:
    with pytest.raises(InputError, match="cannot hold a NUL or what is not Unicode"):
        absolute_url(text)


def test_an_unknown_protocol_is_bad_input() -> None:
    with pytest.raises(InputError, match="nosuchprotocol"):
        Folder("nosuchprotocol://bucket/x")


def test_options_may_be_given_per_protocol() -> None:
    options = {"s3": {"key": "k"}, "https": {"headers": "h"}}
    assert options_for("s3://bucket/x", options) == {"key": "k"}
    assert options_for("https://host/x", options) == {"headers": "h"}
    assert options_for("gs://bucket/x", options) == {}
    assert options_for("/local/x", options) == {}
    assert options_for("s3://bucket/x", {"key": "k"}) == {"key": "k"}
    assert options_for("s3://bucket/x", {"client_kwargs": {"a": 1}}) == {"client_kwargs": {"a": 1}}


def test_local_paths_are_made_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert absolute_url("a/b.parquet") == str(tmp_path / "a" / "b.parquet")
    assert absolute_url(f"file://{tmp_path}/a") == str(tmp_path / "a")
    assert absolute_url("s3://bucket/a b") == "s3://bucket/a b"


# --- a store of one's own ---------------------------------------------------------------------------------------------


class DictStore:
    """Objects in a dictionary."""

    creates = True

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}

    def read(self, name: str, start: int = 0, stop: int | None = None) -> bytes:
        return self._found(name)[start:stop]

    def put(self, name: str, data: bytes) -> None:
        self.objects[name] = data

    def create(self, name: str, data: bytes) -> None:
        if self.objects.setdefault(name, data) is not data:
            raise FileExistsError(name)

    def upload(self, name: str, local_path: str) -> None:
        self.put(name, Path(local_path).read_bytes())

    def open(self, name: str) -> IO[bytes]:
        return io.BytesIO(self._found(name))

    def size(self, name: str) -> int:
        return len(self._found(name))

    def delete(self, name: str) -> None:
        self.objects.pop(name, None)

    def list(self, prefix: str) -> Iterator[str]:
        return (name for name in self.objects if name.startswith(prefix))

    def partial(self, prefix: str) -> Iterator[str]:
        return iter(())

    def _found(self, name: str) -> bytes:
        if name not in self.objects:
            raise FileNotFoundError(name)
        return self.objects[name]


def test_a_folder_over_a_store_of_ones_own_is_like_any_other() -> None:
    folder = Folder.of(DictStore(), "made-up://place/")
    folder.put("b/2", b"two")
    folder.put("a/1", b"one")
    assert folder.list() == ["a/1", "b/2"]
    assert folder.create("c", b"x")
    assert not folder.create("c", b"y")
    assert folder.with_patience(Patience(total=1.0)).read("c") == b"x"
    with pytest.raises(FileNotFoundError, match="made-up://place/d"):
        folder.read("d")


def test_a_folder_asked_with_another_patience_is_the_same_folder(place: str) -> None:
    folder = Folder(place)
    assert folder.can_create()
    other = folder.with_patience(Patience(total=1.0))
    assert other.create("a", b"x")
    assert folder.list() == ["a"]
    assert repr(other) == repr(folder)
