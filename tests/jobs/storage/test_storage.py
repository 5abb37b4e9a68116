"""The same promises over a local folder, memory and S3."""

from __future__ import annotations

import io
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import pytest

from jobs.errors import InputError, StorageError
from jobs.storage.folders import Folder
from jobs.storage.inputs import expand, open_input, stat_input
from jobs.storage.patience import Patience
from jobs.storage.urls import absolute_url
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
