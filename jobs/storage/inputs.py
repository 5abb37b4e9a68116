"""Single input files anywhere: found, identified, opened."""

from __future__ import annotations

import glob
import logging
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import IO, Any

from jobs.errors import InputError
from jobs.storage.filesystems import FileSystem, reading_errors
from jobs.storage.patience import PATIENT, Patience
from jobs.storage.urls import Options, absolute_url, is_url

log = logging.getLogger(__name__)


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
        Refused: it is not given out, whoever asks and when.
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
    hidden: bool = False,
    patience: Patience = PATIENT,
) -> list[str]:
    """The files that a path, glob, folder or URL stands for: absolute, sorted. Links to folders are followed.

    Args:
        suffixes: which files of a folder are meant (lower case, with the dot). A file that is named, or matched by a
            glob, needs no suffix.
        hidden: whether hidden files of a folder, and those that begin with an underscore, are meant.

    Raises:
        InputError: there is no such file, the folder has none, or nothing matches.
    """
    url = absolute_url(pattern)
    try:
        with reading_errors("look at", url, options):
            found = _expand_remote(url, FileSystem(url, options, patience)) if is_url(url) else _expand_local(url)
    except FileNotFoundError:  # nor a bucket of that name
        found = _Found([], folder=False)
    if found.folder:
        found = _Found([f for f in found.files if _wanted(f, suffixes, hidden)], folder=True)
    if not found.files:
        what = f"no {' or '.join(suffixes)} file" if found.folder and suffixes else "no such file"
        raise InputError(f"{what}: {url}")
    return sorted(found.files)


@dataclass(frozen=True, slots=True)
class _Found:
    files: list[str]
    folder: bool


def base_of(pattern: str, files: Sequence[str]) -> str:
    """What names within an input leave out at the beginning of its files' URLs: the folder, or a glob's fixed part.

    Args:
        files: what `expand` has made of the pattern, or some of it.
    """
    url = absolute_url(pattern)
    folder = f"{url.rstrip('/')}/"
    if all(file.startswith(folder) for file in files):
        return folder
    places = [] if list(files) == [url] else [at for at in map(url.find, "*?[") if at >= 0]
    folder = f"{url[: min(places, default=len(url))].rpartition('/')[0]}/"
    return folder if all(file.startswith(folder) for file in files) else ""


def _expand_local(path: str) -> _Found:
    if os.path.isdir(path):
        return _Found(list(_walked(path)), folder=True)
    if os.path.exists(path):
        return _Found([path], folder=False)
    matches = glob.glob(path, recursive=True) if glob.has_magic(path) else []
    return _Found([match for match in matches if os.path.isfile(match)], folder=False)


def _walked(top: str) -> Iterator[str]:
    """The files below a folder; one that a link has below itself is not gone through again."""
    pending: list[tuple[str, frozenset[tuple[int, int]]]] = [(top, frozenset())]
    while pending:
        folder, above = pending.pop()
        try:
            found, entries = os.stat(folder), list(os.scandir(folder))
        except PermissionError as error:
            if folder == top:
                raise
            log.warning("left out, with what may be in it: %s: %s", folder, error.strerror)
            continue
        here = (found.st_dev, found.st_ino)
        if here in above:
            continue
        pending += [(entry.path, above | {here}) for entry in entries if entry.is_dir()]
        yield from (entry.path for entry in entries if not entry.is_dir())


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


def _wanted(url: str, suffixes: tuple[str, ...] | None, hidden: bool) -> bool:
    base = url.rpartition("/")[2]
    return (hidden or not base.startswith((".", "_"))) and (suffixes is None or base.lower().endswith(suffixes))
