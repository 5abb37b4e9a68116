"""Where a checkpoint lies: a folder here, one behind a URL, or a repository of the hub brought here."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

_HUB_ID = re.compile(r"^[\w.-]+/[\w.-]+$")


@dataclass(frozen=True, slots=True)
class Folder:
    """A local folder that checkpoints are read from."""

    path: Path
    only: str | None = None  # the file that was asked for by its path

    def names(self) -> list[str]:
        """Its files; the one that was asked for by its path alone."""
        return [self.only] if self.only else sorted(entry.name for entry in self.path.iterdir() if entry.is_file())

    def has(self, name: str) -> bool:
        """Whether it holds a file, asked for or not."""
        return (self.path / name).is_file()

    def read(self, name: str) -> bytes:
        """A file's contents."""
        return (self.path / name).read_bytes()

    def describe(self, name: str = "") -> str:
        """What to call it, or a file of it."""
        return str(self.path / name)


@dataclass(frozen=True, slots=True)
class Remote:
    """The same for a folder behind an fsspec URL."""

    filesystem: Any
    path: str
    url: str
    only: str | None = None

    def names(self) -> list[str]:
        if self.only:
            return [self.only]
        return sorted(PurePosixPath(entry).name for entry in self.filesystem.ls(self.path, detail=False))

    def has(self, name: str) -> bool:
        return _kind(self.filesystem, f"{self.path}/{name}") == "file"

    def read(self, name: str) -> bytes:
        return bytes(self.filesystem.cat_file(f"{self.path}/{name}"))

    def describe(self, name: str = "") -> str:
        return f"{self.url.rstrip('/')}/{name}" if name else self.url


def is_hub_id(where: str) -> bool:
    """Whether a text has the form ``owner/name``; there may be no such repository."""
    return _HUB_ID.match(where) is not None and not where.startswith(".")


def locate(
    where: str, wanted: Sequence[str], *, alternatives: bool, options: Mapping[str, Any] | None = None
) -> Folder | Remote:
    """The folder that `where` names, or that of the file it names.

    Args:
        where: a folder, a file, an fsspec URL of either, or a hub id.
        wanted: files that are fetched from the hub, those that are there.
        alternatives: whether those may be the same thing in several forms, of which one is enough.
        options: fsspec's, for a URL.

    Raises:
        FileNotFoundError: there is nothing.
        ImportError: a URL, and fsspec is not installed.
    """
    if "://" in where:
        return _locate_remote(where, dict(options or {}))
    path = Path(where).expanduser()
    if path.is_dir():
        return Folder(path)
    if path.is_file():
        return Folder(path.parent, only=path.name)
    if is_hub_id(where):
        return Folder(_download(where, list(wanted), alternatives))
    raise FileNotFoundError(
        f"no checkpoint at {where!r}: not a file or folder here, and not of the form of a hub id (owner/name), "
        "a URL (s3://...), 'random:tiny' or 'random:full'"
    )


def _locate_remote(url: str, options: dict[str, Any]) -> Remote:
    try:
        import fsspec
    except ImportError as error:
        raise ImportError(f"reading {url!r} needs fsspec: pip install fsspec (and s3fs for s3://)") from error
    filesystem, path = fsspec.core.url_to_fs(url, **options)
    path = path.rstrip("/")
    kind = _kind(filesystem, path)
    if kind == "file":
        parent, _, name = path.rpartition("/")
        return Remote(filesystem, parent, url.rstrip("/").rpartition("/")[0], only=name)
    if kind != "directory":
        raise FileNotFoundError(f"no checkpoint at {url!r}: no such file or folder")
    return Remote(filesystem, path, url)


def _kind(filesystem: Any, path: str) -> str | None:
    """ "file", "directory", or None where there is nothing; fsspec's own questions answer no to any error, too."""
    try:
        return str(filesystem.info(path)["type"])
    except FileNotFoundError:
        return None


def _download(hub_id: str, wanted: list[str], alternatives: bool) -> Path:
    """The hub's files of a checkpoint in its local cache: fetched when they are not there, offline when they are."""
    import huggingface_hub
    from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError

    try:
        if alternatives:
            wanted = _preferred(huggingface_hub.list_repo_files(hub_id), wanted)
        return Path(huggingface_hub.snapshot_download(hub_id, allow_patterns=wanted))
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise FileNotFoundError(f"the hub has no readable repository {hub_id!r}: {error}") from error
    except Exception as error:  # without a network, the client raises whatever its transport does
        return _cached(hub_id, wanted, error)


def _preferred(published: Iterable[str], wanted: list[str]) -> list[str]:
    """Of one checkpoint published in both forms, the safetensors: publishers keep the other for old readers."""
    there = set(published)
    return [name for name in wanted if not (name.endswith(".pt") and name.replace(".pt", ".safetensors") in there)]


def _cached(hub_id: str, wanted: list[str], error: Exception) -> Path:
    import huggingface_hub
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        return Path(huggingface_hub.snapshot_download(hub_id, allow_patterns=wanted, local_files_only=True))
    except LocalEntryNotFoundError:
        raise FileNotFoundError(
            f"no checkpoint {hub_id!r}: there is no such file or folder here, it is not in the hub's local cache, "
            f"and the hub could not be reached ({type(error).__name__}: {error})"
        ) from error
