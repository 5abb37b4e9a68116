"""Single input files anywhere: found, identified, opened."""

from __future__ import annotations

import glob
import os
from dataclasses import dataclass
from typing import IO, Any

from jobs.errors import InputError
from jobs.filesystems import FileSystem, reading_errors
from jobs.patience import PATIENT, Patience
from jobs.urls import Options, absolute_url, is_url


@dataclass(frozen=True, kw_only=True, slots=True)
class InputStat:
    """What identifies a version of an input file."""

    url: str
    size: int  # bytes
    etag: str  # the store's ETag or checksum; of a local file its modification time in ns


def open_input(url: str, options: Options | None = None, *, patience: Patience = PATIENT) -> IO[bytes]:
    """One file anywhere, for random-access reading.

    Raises:
        FileNotFoundError: there is none.
        StorageError: it cannot be opened; later, when it is read, that it cannot be read.
    """
    url = absolute_url(url)
    with reading_errors("read", url, options):
        if not is_url(url):
            return open(url, "rb")
        files = FileSystem(url, options, patience)
        return files.open(files.path, url)


def read_part(
    url: str, start: int, stop: int, options: Options | None = None, *, patience: Patience = PATIENT
) -> bytes:
    """Bytes ``start`` to ``stop`` (exclusive) of one file, as far as it has them. Raises as ``open_input``."""
    url = absolute_url(url)
    with reading_errors("read", url, options):
        if not is_url(url):
            with open(url, "rb") as file:
                file.seek(start)
                return file.read(stop - start)
        files = FileSystem(url, options, patience)
        return bytes(files.ask("read", url, "cat_file", files.path, start=start, end=stop))


def stat_input(url: str, options: Options | None = None, *, patience: Patience = PATIENT) -> InputStat:
    """Size and version of one file. FileNotFoundError when absent."""
    url = absolute_url(url)
    with reading_errors("look at", url, options):
        if not is_url(url):
            found = os.stat(url)
            return InputStat(url=url, size=found.st_size, etag=str(found.st_mtime_ns))
        files = FileSystem(url, options, patience)
        files.fs.invalidate_cache()
        info = files.ask("look at", url, "info", files.path)
        tag = info.get("ETag") or info.get("etag") or info.get("md5Hash") or files.fs.checksum(files.path)
        return InputStat(url=url, size=int(info["size"] or 0), etag=str(tag).strip('"'))


def expand(
    pattern: str,
    options: Options | None = None,
    *,
    suffixes: tuple[str, ...] | None = None,
    patience: Patience = PATIENT,
) -> list[str]:
    """The files that a path, glob, folder or URL stands for: absolute, sorted.

    Args:
        suffixes: which files of a folder are meant (lower case, with the dot); hidden ones and those that begin with
            an underscore never are. A file that is named, or matched by a glob, needs no suffix.

    Raises:
        InputError: there is no such file, the folder has none, or nothing matches.
    """
    url = absolute_url(pattern)
    with reading_errors("look at", url, options):
        found = _expand_remote(url, FileSystem(url, options, patience)) if is_url(url) else _expand_local(url)
        if found.folder:
            found = _Found([f for f in found.files if _wanted(f, suffixes)], folder=True)
    if not found.files:
        what = f"no {' or '.join(suffixes)} file" if found.folder and suffixes else "no such file"
        raise InputError(f"{what}: {url}")
    return sorted(found.files)


@dataclass(frozen=True, slots=True)
class _Found:
    files: list[str]
    folder: bool


def _expand_local(path: str) -> _Found:
    if os.path.isdir(path):
        files = [os.path.join(parent, name) for parent, _, names in os.walk(path) for name in names]
        return _Found(files, folder=True)
    if os.path.exists(path):
        return _Found([path], folder=False)
    matches = glob.glob(path, recursive=True) if glob.has_magic(path) else []
    return _Found([match for match in matches if os.path.isfile(match)], folder=False)


def _expand_remote(url: str, files: FileSystem) -> _Found:
    files.fs.invalidate_cache()
    if _is_file(url, files):
        return _Found([url], folder=False)
    if glob.has_magic(files.path):
        # As for local globs, a star matches no hidden file.
        matches = files.ask("list", url, "glob", files.path, detail=True)
        shown = (path for path in matches if not path.rpartition("/")[2].startswith("."))
        return _Found([_url_of(files.fs, path) for path in shown if matches[path]["type"] == "file"], folder=False)
    found = [_url_of(files.fs, path) for path in files.ask("list", url, "find", files.path) if not path.endswith("/")]
    return _Found(found, folder=bool(found))  # in an object store a folder is what its objects make of it


def _is_file(url: str, files: FileSystem) -> bool:
    try:  # fsspec's own ``isfile`` says no when it could not ask
        return bool(files.ask("look at", url, "info", files.path)["type"] == "file")
    except FileNotFoundError:
        return False


def _url_of(fs: Any, path: str) -> str:
    # The in-memory file system's paths begin with a slash that its URLs do not need.
    return str(fs.unstrip_protocol(path)).replace("memory:///", "memory://")


def _wanted(url: str, suffixes: tuple[str, ...] | None) -> bool:
    base = url.rpartition("/")[2]
    return not base.startswith((".", "_")) and (suffixes is None or base.lower().endswith(suffixes))
