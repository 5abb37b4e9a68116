"""Folders on any storage, seen as whole named objects.

A ``Folder`` is a prefix under which names are read and written. Writes are all or nothing (see ``stores``).

``create`` is put-if-absent. Stores differ: some honour ``If-None-Match``, some ignore it and overwrite. ``can_create``
finds out with a probe object, once per ``Folder``; whoever needs exclusion on a store without it has to find another
rule (see `jobs.ledger.ledger`).

Errors come in two kinds: ``StorageError`` (nothing was written) and ``StorageUnknown`` (it may have been).
``FileNotFoundError`` keeps its name. No message holds a storage option or a secret of the environment.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
from collections.abc import Iterator
from typing import IO, NoReturn
from urllib.parse import urlsplit

from jobs.errors import InputError, JobError, StorageError, StorageUnknown
from jobs.storage.credentials import secret_texts
from jobs.storage.faults import Doubtful, translated, unsupported
from jobs.storage.filesystems import S3, FileSystem
from jobs.storage.patience import PATIENT, Patience
from jobs.storage.s3 import S3Store
from jobs.storage.stores import WHOLE, LocalStore, RemoteStore, Store
from jobs.storage.urls import Options, absolute_url, is_url


class Folder:
    """A prefix in some file system, by URL or local path.

    Not for pickling: it may hold credentials and open connections. Send the URL, and make another one there.
    """

    def __init__(self, url: str, options: Options | None = None, *, patience: Patience = PATIENT) -> None:
        self.url = absolute_url(url).rstrip("/") or "/"
        self._secrets = secret_texts(options)
        self._options = options
        self._can_create: bool | None = None
        with self._errors("open", "", writing=False):
            self._store = _store_of(self.url, options, patience)

    @classmethod
    def of(cls, store: Store, url: str) -> Folder:
        """A folder over a raw store of one's own.

        Args:
            url: its name in messages and records. With a protocol (``made-up://x``) a write that fails may have landed.
        """
        folder = cls.__new__(cls)
        folder.url, folder._store, folder._secrets, folder._can_create = url.rstrip("/"), store, [], None
        folder._options = None
        return folder

    def elsewhere(self, url: str) -> Folder:
        """Another folder, reached with the same options."""
        return Folder(url, self._options)

    @property
    def has_options(self) -> bool:
        """Whether it was reached with storage options, which another command has to be given too."""
        return bool(self._options)

    def with_patience(self, patience: Patience) -> Folder:
        """The same folder over the same connections; requests to a remote store are repeated so long and no longer."""
        store = self._store.with_patience(patience) if isinstance(self._store, RemoteStore) else self._store
        other = Folder.of(store, self.url)
        other._secrets, other._can_create, other._options = self._secrets, self._can_create, self._options
        return other

    def __repr__(self) -> str:
        return f"Folder({self.url!r})"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a Folder is not pickled: send its url, and make a Folder from it with the receiver's options")

    def path(self, name: str) -> str:
        """The URL of ``name``, for messages and records."""
        return f"{self.url.rstrip('/')}/{name}" if name else self.url

    def read(self, name: str, start: int = 0, stop: int | None = None) -> bytes:
        """The object as it is now, or its bytes from ``start``, which it must have, to before ``stop``.

        FileNotFoundError when absent.
        """
        with self._errors("read", name, writing=False):
            return self._store.read(_checked(name), start, stop)

    def put(self, name: str, data: bytes) -> None:
        """Writes the object, or replaces it, at once."""
        with self._errors("write", name, writing=True):
            self._store.put(_checked(name), data)

    def upload(self, name: str, local_path: str | os.PathLike[str]) -> None:
        """``put`` of a local file's content, streamed."""
        with self._errors("write", name, writing=True):
            self._store.upload(_checked(name), os.fspath(local_path))

    def create(self, name: str, data: bytes) -> bool:
        """Writes the object if there is none, atomically; False when there is another one.

        An object with the same bytes counts as one's own: a request that was repeated below, after its answer was
        lost, finds its own first try. So ``data`` has to hold something that only this writer has.

        Raises:
            StorageError: this store cannot do it (``can_create`` is False), or the write surely failed.
            StorageUnknown: the object may have been written, or may still be.
        """
        if not self.can_create():
            raise StorageError(f"{self.url}: this store has no atomic put-if-absent, {name} was not written")
        doubt: StorageUnknown | None = None
        try:
            if self._created(name, data):
                return True
        except StorageUnknown as error:
            doubt = error
        try:
            return self.read(name) == data
        except FileNotFoundError:
            raise doubt or StorageUnknown(f"{self.path(name)} was there, and then was not") from None
        except StorageError as error:
            raise StorageUnknown(f"whether {self.path(name)} was written is not known: {error}") from error

    def can_create(self) -> bool:
        """Whether the store keeps the first of two ``create`` of one name; asked once, with a probe object."""
        if self._can_create is None:
            self._can_create = self._store.creates and self._probe()
        return self._can_create

    def open(self, name: str) -> IO[bytes]:
        """The object for random-access reading, as it is now."""
        with self._errors("read", name, writing=False):
            return self._store.open(_checked(name))

    def exists(self, name: str) -> bool:
        """Whether there is an object of that name now."""
        try:
            self.size(name)
        except FileNotFoundError:
            return False
        return True

    def size(self, name: str) -> int:
        """Bytes of the object. FileNotFoundError when absent."""
        with self._errors("look at", name, writing=False):
            return self._store.size(_checked(name))

    def delete(self, name: str) -> None:
        """Deletes the object; nothing happens when there is none."""
        with self._errors("delete", name, writing=True), contextlib.suppress(FileNotFoundError):
            self._store.delete(_checked(name))

    def list(self, prefix: str = "") -> list[str]:
        """The names that begin with ``prefix``, at any depth, sorted, as they are now."""
        with self._errors("list", prefix, writing=False):
            return sorted(self._store.list(prefix))

    def delete_partial(self, prefix: str = "") -> None:
        """Deletes what killed writers left unfinished under ``prefix`` (only local folders have such files)."""
        with self._errors("list", prefix, writing=True):
            for name in list(self._store.partial(prefix)):
                with contextlib.suppress(FileNotFoundError):
                    self._store.delete(name)

    def _created(self, name: str, data: bytes) -> bool:
        """False when there is an object of that name, whoever's it is."""
        with self._errors("write", name, writing=True):
            try:
                self._store.create(_checked(name), data)
            except FileExistsError:
                return False
        return True

    def _probe(self) -> bool:
        name = f".probe-{secrets.token_hex(8)}"
        try:
            # The name is nobody else's: should there be an object already, it is from a try whose answer was lost.
            with contextlib.suppress(FileExistsError):
                self._store.create(name, b"first")
            with contextlib.suppress(FileExistsError):
                self._store.create(name, b"second")
                return False
            return self._store.read(name) == b"first"
        except Exception as error:
            if unsupported(error):
                return False
            self._raise("write", name, error, writing=True)
        finally:
            with contextlib.suppress(Exception):
                self._store.delete(name)

    @contextlib.contextmanager
    def _errors(self, verb: str, name: str, *, writing: bool) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError as error:
            if writing:
                self._raise(verb, name, error, writing=True)
            raise FileNotFoundError(errno.ENOENT, "no such file", self.path(name)) from None
        except JobError:
            raise
        except Exception as error:
            self._raise(verb, name, error, writing=writing)

    def _raise(self, verb: str, name: str, error: Exception, *, writing: bool) -> NoReturn:
        # A local write fails before its rename, or says that it does not know.
        uncertain = writing and (is_url(self.url) or isinstance(error, Doubtful))
        # No chain to the error below, which a log would print: its text may hold credentials.
        raise translated(f"cannot {verb} {self.path(name)}", error, self._secrets, uncertain=uncertain) from None


def _store_of(url: str, options: Options | None, patience: Patience) -> Store:
    if not is_url(url):
        return LocalStore(url)
    protocol = urlsplit(url).scheme
    if protocol not in WHOLE:
        raise InputError(
            f"{url}: nothing is written to {protocol}://, where a write that is cut short may leave a torn file; "
            f"give a local path, or a URL of one of {', '.join(sorted(WHOLE))}"
        )
    files = FileSystem(url, options, patience)
    return S3Store(url, files) if files.protocol in S3 else RemoteStore(url, files)


def _checked(name: str) -> str:
    if not name or name.startswith("/") or name.endswith("/") or any(p in ("", ".", "..") for p in name.split("/")):
        raise ValueError(f"not a name inside a folder: {name!r}")
    return name
