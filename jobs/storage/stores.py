"""Raw operations on the objects under one root: in a local folder, and behind fsspec (S3 has a room of its own).

They raise what the system below raises; ``folders`` says what it means. Writes are all or nothing: a reader, and a
listing, see a complete object or none, whenever the writer dies.

- Local folders write to a hidden temporary name, flush to the disk and rename; ``create`` hard-links instead, which the
  file system refuses atomically when the name is taken.
- Object stores get one request per object. File handles opened for writing are never used: fsspec commits what was
  written so far when an exception passes through them.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
import shutil
import stat
import threading
from collections.abc import Callable, Iterator, Mapping
from copy import copy
from pathlib import Path
from typing import IO, Any, ClassVar, Protocol, Self

from jobs.storage.faults import Doubtful
from jobs.storage.filesystems import READ_BLOCK, S3, FileSystem
from jobs.storage.patience import Patience

CREATES = S3 | {"memory"}  # elsewhere fsspec's ``create`` looks, then writes
# Of fsspec's file systems, those where an object is there as a whole or not at all.
WHOLE = S3 | {"memory", "gs", "gcs", "az", "abfs", "abfss", "adl"}
PART_SUFFIX = ".part"  # of a local file that is still being written
PART_DIGITS = 16
PART_NAME = re.compile(rf"\.[0-9a-f]{{{PART_DIGITS}}}{re.escape(PART_SUFFIX)}")
# With these a link or a rename has surely not happened.
REFUSALS = frozenset(
    {errno.EPERM, errno.EACCES, errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EXDEV, errno.ENAMETOOLONG}
    | {errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EISDIR, errno.ENOTDIR, errno.EINVAL}
)


class Store(Protocol):
    """What a ``Folder`` needs. Names are paths under the root; absent ones raise FileNotFoundError."""

    creates: bool  # whether ``create`` can be atomic here at all

    def read(self, name: str, start: int = 0, stop: int | None = None) -> bytes: ...
    def put(self, name: str, data: bytes) -> None: ...
    def create(self, name: str, data: bytes) -> None: ...  # FileExistsError
    def upload(self, name: str, local_path: str) -> None: ...
    def open(self, name: str) -> IO[bytes]: ...
    def size(self, name: str) -> int: ...
    def delete(self, name: str) -> None: ...
    def list(self, prefix: str) -> Iterator[str]: ...  # at any depth, in any order
    def partial(self, prefix: str) -> Iterator[str]: ...  # what killed writers left


class LocalStore:
    """Files under a local folder."""

    creates = True

    def __init__(self, root: str) -> None:
        self._root = Path(root)

    def read(self, name: str, start: int = 0, stop: int | None = None) -> bytes:
        with open(self._root / name, "rb") as file:
            file.seek(start)
            return file.read() if stop is None else file.read(max(0, stop - start))

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

    def list(self, prefix: str) -> Iterator[str]:
        return (name for name in self._walk(prefix) if not _is_partial(name))

    def partial(self, prefix: str) -> Iterator[str]:
        return (name for name in self._walk(prefix) if _is_partial(name))

    def _walk(self, prefix: str) -> Iterator[str]:
        folder, _, beginning = prefix.rpartition("/")
        for parent, folders, names in os.walk(self._root / folder, onerror=_unless_absent):
            found = [name for name in names if name.startswith(beginning)]
            folders[:] = [name for name in folders if name.startswith(beginning)]
            beginning = ""  # counts at the top only
            for name in found:
                yield (Path(parent) / name).relative_to(self._root).as_posix()

    def _publish(self, name: str, fill: Callable[[IO[bytes]], object], place: Callable[[Path, Path], None]) -> None:
        target = self._root / name
        _refuse_device(target)
        target.parent.mkdir(parents=True, exist_ok=True)
        part = target.parent / f".{secrets.token_hex(PART_DIGITS // 2)}{PART_SUFFIX}"
        try:
            with open(part, "xb") as file:
                fill(file)
                file.flush()
                os.fsync(file.fileno())
            _placed(lambda: place(part, target))
        finally:
            with contextlib.suppress(OSError):
                part.unlink(missing_ok=True)
        _sync_folder(target.parent)


def _refuse_device(target: Path) -> None:
    """A rename onto a device or a pipe would take its place, in all of the system: `--out /dev/null` by root."""
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        mode = target.lstat().st_mode
        if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode) or stat.S_ISLNK(mode)):
            raise OSError(errno.EINVAL, "it is a device or a pipe, and would be replaced by a file")


def _unless_absent(error: OSError) -> None:
    # What cannot be listed is not empty.
    if not isinstance(error, FileNotFoundError | NotADirectoryError):
        raise error


def _placed(place: Callable[[], None]) -> None:
    try:
        place()
    except OSError as error:
        # A network file system may have done it and lost the answer.
        if isinstance(error, FileExistsError) or error.errno in REFUSALS:
            raise
        raise Doubtful(str(error)) from error


def _is_partial(name: str) -> bool:
    return PART_NAME.fullmatch(name.rpartition("/")[2]) is not None


def _sync_folder(path: Path) -> None:
    """Makes a rename last through a power cut; not every file system lets a folder be flushed."""
    with contextlib.suppress(OSError):
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


class RemoteStore:
    """Objects behind any of fsspec's file systems."""

    # The in-memory file system looks, then writes: its threads need this to be one step.
    _memory_lock = threading.Lock()
    _read_settings: ClassVar[Mapping[str, Any]] = {}

    def __init__(self, url: str, filesystem: FileSystem) -> None:
        self.url, self._filesystem = url, filesystem
        self.creates = filesystem.protocol in CREATES

    def with_patience(self, patience: Patience) -> Self:
        """The same store over the same connections, asked with another patience."""
        other = copy(self)
        other._filesystem = self._filesystem.with_patience(patience)
        return other

    def read(self, name: str, start: int = 0, stop: int | None = None) -> bytes:
        limits: dict[str, Any] = {} if start == 0 and stop is None else {"start": start, "end": stop}
        return bytes(self._ask("read", name, "cat_file", **limits, **self._read_settings))

    def put(self, name: str, data: bytes) -> None:
        self._ask("write", name, "pipe_file", data, writing=True)

    def create(self, name: str, data: bytes) -> None:
        with self._memory_lock:
            self._ask("write", name, "pipe_file", data, mode="create", writing=True)

    def upload(self, name: str, local_path: str) -> None:
        self.put(name, Path(local_path).read_bytes())

    def open(self, name: str) -> IO[bytes]:
        return self._filesystem.open(self._path(name), self._url(name))

    def size(self, name: str) -> int:
        info = self._ask("look at", name, "info")
        if info["type"] != "file":
            raise FileNotFoundError(name)
        return int(info["size"])

    def delete(self, name: str) -> None:
        self._ask("delete", name, "rm_file")

    def list(self, prefix: str) -> Iterator[str]:
        self._filesystem.fs.invalidate_cache()
        for path in self._ask("list", prefix.rpartition("/")[0], "find"):
            name = path.removeprefix(self._filesystem.path).lstrip("/")
            if name.startswith(prefix) and name and not name.endswith("/"):
                yield name

    def partial(self, prefix: str) -> Iterator[str]:
        return iter(())

    def _ask(self, verb: str, name: str, method: str, *args: Any, writing: bool = False, **kw: Any) -> Any:
        path = self._path(name)
        return self._filesystem.ask(verb, self._url(name), method, path, *args, writing=writing, **kw)

    def _path(self, name: str) -> str:
        return f"{self._filesystem.path}/{name}" if name else self._filesystem.path

    def _url(self, name: str) -> str:
        return f"{self.url}/{name}"
