"""Raw operations on the objects under one root, in a local folder and behind fsspec.

They raise what the system below raises; ``storage`` says what it means. Writes are all or nothing: a reader, and a
listing, see a complete object or none, whenever the writer dies.

- Local folders write to a hidden temporary name, flush to the disk and rename; ``create`` hard-links instead, which the
  file system refuses atomically when the name is taken.
- Object stores get one request per object (or one multipart upload, which appears when it is completed). File handles
  opened for writing are never used: fsspec commits what was written so far when an exception passes through them.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Protocol
from urllib.parse import urlsplit

from jobs.faults import status_of
from jobs.filesystems import READ_BLOCK, filesystem, open_file
from jobs.urls import Options

PART_SUFFIX = ".part"  # of a local file that is still being written
CREATES = frozenset(
    {"s3", "s3a", "memory"}
)  # fsspec's ``create`` is one atomic request here; elsewhere it looks, then writes


class Store(Protocol):
    """The raw operations on one root; paths are names under it."""

    creates: bool  # whether ``create`` can be atomic here at all

    def read(self, name: str) -> bytes: ...
    def put(self, name: str, data: bytes) -> None: ...
    def create(self, name: str, data: bytes) -> None: ...  # FileExistsError
    def upload(self, name: str, local_path: str) -> None: ...
    def open(self, name: str) -> IO[bytes]: ...
    def size(self, name: str) -> int: ...
    def delete(self, name: str) -> None: ...
    def list(self, folder: str) -> Iterator[str]: ...
    def partial(self, folder: str) -> Iterator[str]: ...  # what killed writers left


class LocalStore:
    creates = True

    def __init__(self, root: str) -> None:
        self._root = Path(root)

    def read(self, name: str) -> bytes:
        return (self._root / name).read_bytes()

    def put(self, name: str, data: bytes) -> None:
        self._publish(name, lambda file: file.write(data), os.replace)

    def create(self, name: str, data: bytes) -> None:
        self._publish(name, lambda file: file.write(data), os.link)

    def upload(self, name: str, local_path: str) -> None:
        with open(local_path, "rb") as source:
            self._publish(name, lambda file: shutil.copyfileobj(source, file, READ_BLOCK), os.replace)

    def open(self, name: str) -> IO[bytes]:
        return open(self._root / name, "rb")

    def size(self, name: str) -> int:
        path = self._root / name
        if path.is_dir():
            raise FileNotFoundError(name)
        return path.stat().st_size

    def delete(self, name: str) -> None:
        (self._root / name).unlink()

    def list(self, folder: str) -> Iterator[str]:
        return (name for name in self._walk(folder) if not _is_partial(name))

    def partial(self, folder: str) -> Iterator[str]:
        return (name for name in self._walk(folder) if _is_partial(name))

    def _walk(self, folder: str) -> Iterator[str]:
        for parent, _, names in os.walk(self._root / folder):
            for name in names:
                yield (Path(parent) / name).relative_to(self._root).as_posix()

    def _publish(self, name: str, fill: Callable[[IO[bytes]], object], place: Callable[[Path, Path], None]) -> None:
        target = self._root / name
        target.parent.mkdir(parents=True, exist_ok=True)
        part = target.parent / f".{secrets.token_hex(8)}{PART_SUFFIX}"
        try:
            with open(part, "xb") as file:
                fill(file)
                file.flush()
                os.fsync(file.fileno())
            place(part, target)
        finally:
            part.unlink(missing_ok=True)
        _sync_folder(target.parent)


def _is_partial(name: str) -> bool:
    base = name.rpartition("/")[2]
    return base.startswith(".") and base.endswith(PART_SUFFIX)


def _sync_folder(path: Path) -> None:
    """Makes a rename last through a power cut; not every file system lets a folder be flushed."""
    with contextlib.suppress(OSError):
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


class RemoteStore:
    # The in-memory file system looks, then writes: its threads need this to be one step.
    _memory_lock = threading.Lock()

    def __init__(self, url: str, options: Options | None) -> None:
        self._fs, self._root = filesystem(url, options)
        self._protocol = urlsplit(url).scheme
        self.creates = self._protocol in CREATES

    def read(self, name: str) -> bytes:
        return bytes(self._fs.cat_file(self._path(name)))

    def put(self, name: str, data: bytes) -> None:
        self._fs.pipe_file(self._path(name), data)

    def create(self, name: str, data: bytes) -> None:
        lock = self._memory_lock if self._protocol == "memory" else contextlib.nullcontext()
        with lock:
            try:
                self._fs.pipe_file(self._path(name), data, mode="create")
            except OSError as error:
                # s3fs knows AWS's wording of "there is one"; other stores say it by the status alone.
                if status_of(error) == 412:
                    raise FileExistsError(name) from error
                raise

    def upload(self, name: str, local_path: str) -> None:
        if self._protocol in CREATES:
            self._fs.put_file(local_path, self._path(name))
        else:
            self.put(name, Path(local_path).read_bytes())

    def open(self, name: str) -> IO[bytes]:
        return open_file(self._fs, self._path(name))

    def size(self, name: str) -> int:
        info = self._fs.info(self._path(name))
        if info["type"] != "file":
            raise FileNotFoundError(name)
        return int(info["size"])

    def delete(self, name: str) -> None:
        self._fs.rm_file(self._path(name))

    def list(self, folder: str) -> Iterator[str]:
        self._fs.invalidate_cache()
        start = self._path(folder) if folder else self._root
        for path in self._fs.find(start):
            name = path.removeprefix(self._root).lstrip("/")
            if name and not name.endswith("/"):
                yield name

    def partial(self, folder: str) -> Iterator[str]:
        return iter(())

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}"
