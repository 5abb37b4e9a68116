"""Single input files anywhere: found, identified, opened."""

from __future__ import annotations

import contextlib
import errno
import glob
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO, Any

from jobs.credentials import secret_texts
from jobs.errors import InputError, JobError
from jobs.faults import translated
from jobs.filesystems import filesystem, open_file
from jobs.urls import Options, absolute_url, is_url


@dataclass(frozen=True, kw_only=True, slots=True)
class InputStat:
    """What identifies a version of an input file."""

    url: str
    size: int  # bytes
    etag: str  # the store's ETag or checksum; of a local file its modification time in ns


def open_input(url: str, options: Options | None = None) -> IO[bytes]:
    """One file anywhere, for random-access reading. FileNotFoundError when absent."""
    url = absolute_url(url)
    with _input_errors("read", url, options):
        if not is_url(url):
            return open(url, "rb")
        return open_file(*filesystem(url, options))


def stat_input(url: str, options: Options | None = None) -> InputStat:
    """Size and version of one file. FileNotFoundError when absent."""
    url = absolute_url(url)
    with _input_errors("look at", url, options):
        if not is_url(url):
            found = os.stat(url)
            return InputStat(url=url, size=found.st_size, etag=str(found.st_mtime_ns))
        fs, path = filesystem(url, options)
        fs.invalidate_cache()
        info = fs.info(path)
        tag = info.get("ETag") or info.get("etag") or info.get("md5Hash") or fs.checksum(path)
        return InputStat(url=url, size=int(info["size"] or 0), etag=str(tag).strip('"'))


def expand(pattern: str, options: Options | None = None, *, suffixes: tuple[str, ...] | None = None) -> list[str]:
    """The files that a path, glob, folder or URL stands for: absolute, sorted.

    Args:
        suffixes: which files of a folder are meant (lower case, with the dot); hidden ones and those that begin with
            an underscore never are. A file that is named, or matched by a glob, needs no suffix.

    Raises:
        InputError: there is no such file, the folder has none, or nothing matches.
    """
    url = absolute_url(pattern)
    with _input_errors("look at", url, options):
        found = _expand_remote(url, options) if is_url(url) else _expand_local(url)
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


def _expand_remote(url: str, options: Options | None) -> _Found:
    fs, path = filesystem(url, options)
    fs.invalidate_cache()
    if fs.isfile(path):
        return _Found([url], folder=False)
    if glob.has_magic(path):
        # As for local globs, a star matches no hidden file.
        shown = (match for match in fs.glob(path) if not match.rpartition("/")[2].startswith("."))
        return _Found([_url_of(fs, match) for match in shown if fs.isfile(match)], folder=False)
    files = [_url_of(fs, name) for name in fs.find(path) if not name.endswith("/")]
    return _Found(files, folder=bool(files))  # in an object store a folder is what its objects make of it


def _url_of(fs: Any, path: str) -> str:
    # The in-memory file system's paths begin with a slash that its URLs do not need.
    return str(fs.unstrip_protocol(path)).replace("memory:///", "memory://")


def _wanted(url: str, suffixes: tuple[str, ...] | None) -> bool:
    base = url.rpartition("/")[2]
    return not base.startswith((".", "_")) and (suffixes is None or base.lower().endswith(suffixes))


@contextlib.contextmanager
def _input_errors(verb: str, url: str, options: Options | None) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        raise FileNotFoundError(errno.ENOENT, "no such file", url) from None
    except JobError:
        raise
    except Exception as error:
        raise translated(f"cannot {verb} {url}", error, secret_texts(options), uncertain=False) from error
