"""fsspec's file systems, by URL: no other room of the batch system imports it.

Each request is bounded in time and repeated as ``Patience`` says, and by nobody else: s3fs's and botocore's own tries
are switched off, since what they do between a lost answer and the last error cannot be seen from here, and an error
has to say whether a write may have landed. Listings are never cached: a resume has to see what is there.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
from collections.abc import Callable, Iterator
from copy import copy
from typing import IO, Any, TypeVar, cast
from urllib.parse import urlsplit

from jobs.errors import InputError, JobError
from jobs.storage.credentials import scrubbed, secret_texts
from jobs.storage.faults import GONE_STATUS, status_of, translated
from jobs.storage.patience import PATIENT, Patience
from jobs.storage.urls import Options, options_for, store_of

READ_BLOCK = 1 << 22  # bytes per ranged request; fsspec's 50 MiB for S3 would fetch a file to read its footer
S3 = frozenset({"s3", "s3a"})
HTTP = frozenset({"http", "https"})
CONNECT_SECONDS = 5.0
READ_SECONDS = 15.0  # without a byte of the answer
REQUEST_SECONDS = 600.0  # for all of a request, should a server stop to read

T = TypeVar("T")


class FileSystem:
    """The file system of one URL, and the path in it.

    Attributes:
        fs: fsspec's own.
        path: what it calls the place of the URL, without a slash at the end.
        protocol: such as "s3".
    """

    def __init__(self, url: str, options: Options | None = None, patience: Patience = PATIENT) -> None:
        self.patience = patience
        self._options, self._hidden = options, secret_texts(options)
        self.protocol = urlsplit(url).scheme
        self.fs, self.path = _connected(url, options)
        self._store = f"{store_of(url)} {getattr(self.fs, 'endpoint_url', None) or ''}"

    def with_patience(self, patience: Patience) -> FileSystem:
        """The same over the same connections, asked with another patience."""
        other = copy(self)
        other.patience = patience
        return other

    def ask(self, verb: str, url: str, method: str, *args: Any, writing: bool = False, **kw: Any) -> Any:
        """fsspec's answer to one of its methods.

        Args:
            verb: what is done to the file of that URL, for a warning.
            writing: see ``Patience.repeat``, which says what is raised.
        """
        if self.fs.async_impl:
            kw["timeout"] = REQUEST_SECONDS
        call = getattr(self.fs, method)
        return self.patience.repeat(
            lambda: self._unmasked(lambda: call(*args, **kw)),
            store=self._store,
            what=f"{verb} {url}",
            hidden=self._hidden,
            writing=writing,
        )

    def open(self, path: str, url: str) -> IO[bytes]:
        """One file for random-access reading; failed reads are repeated, and raise ``StorageError`` in the end."""
        if self.protocol == "memory":
            # Its files share one position between all their readers.
            return io.BytesIO(self.fs.cat_file(path))
        handle = self.patience.repeat(
            lambda: self._unmasked(lambda: self.fs.open(path, "rb", block_size=READ_BLOCK)),
            store=self._store,
            what=f"read {url}",
            hidden=self._hidden,
        )
        return cast(IO[bytes], _Reader(handle, self, url))

    def _unmasked(self, request: Callable[[], T]) -> T:
        """What a request returns, or raises: of HTTP servers fsspec says for any reason that there is no such file."""
        try:
            return request()
        except FileNotFoundError as error:
            cause = error.__cause__
            if self.protocol in HTTP and isinstance(cause, Exception) and status_of(cause) not in GONE_STATUS:
                raise cause from None
            raise

    def read(self, handle: Any, size: int, url: str) -> bytes:
        """``handle.read(size)``, repeated: one that fails has not moved the handle."""
        with reading_errors("read", url, self._options):
            return self.patience.repeat(
                lambda: bytes(handle.read(size)), store=self._store, what=f"read {url}", hidden=self._hidden
            )


class _Reader(io.RawIOBase):
    """A remote file whose reads are repeated."""

    def __init__(self, handle: Any, filesystem: FileSystem, url: str) -> None:
        self._handle, self._filesystem, self._url = handle, filesystem, url

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return bool(self._handle.seekable())

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        return int(self._handle.seek(offset, whence))

    def tell(self) -> int:
        return int(self._handle.tell())

    def read(self, size: int | None = -1) -> bytes:
        return self._filesystem.read(self._handle, -1 if size is None else size, self._url)

    def readall(self) -> bytes:
        return self.read(-1)

    def readinto(self, buffer: Any) -> int:
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        if not self.closed:
            self._handle.close()
        super().close()


@contextlib.contextmanager
def reading_errors(verb: str, url: str, options: Options | None) -> Iterator[None]:
    """Turns what a request that writes nothing raises into the user's errors; FileNotFoundError stays one."""
    try:
        yield
    except JobError:
        raise
    except FileNotFoundError:
        raise FileNotFoundError(errno.ENOENT, "no such file", url) from None
    except Exception as error:
        raise translated(f"cannot {verb} {url}", error, secret_texts(options), uncertain=False) from None


def fsspec_options(url: str, options: Options | None) -> dict[str, Any]:
    """The options to give to fsspec for ``url``: those that concern it, over this project's defaults.

    Stores of other makers than AWS often cannot do the checksums that botocore has come to ask for by default (they
    refuse them, or answer a ranged read with the sum of the whole object). With an endpoint of one's own they are asked
    for only where the protocol requires it; options and the standard variables still have the last word.
    """
    given = options_for(url, options)
    if urlsplit(url).scheme not in S3:
        return given
    config: dict[str, Any] = {"connect_timeout": CONNECT_SECONDS, "read_timeout": READ_SECONDS}
    client = given.get("client_kwargs") or {}
    endpoint = given.get("endpoint_url") or client.get("endpoint_url") or _endpoint_of_the_environment()
    if endpoint:
        for name in ("request_checksum_calculation", "response_checksum_validation"):
            if f"AWS_{name.upper()}" not in os.environ:
                config[name] = "when_required"
        if "endpoint_url" not in client:
            given["endpoint_url"] = endpoint  # said aloud, or fsspec would give out a connection to an earlier one
    config |= given.get("config_kwargs") or {}
    return {**given, "config_kwargs": config | {"retries": {"total_max_attempts": 1}}}


def _endpoint_of_the_environment() -> str | None:
    if os.environ.get("AWS_IGNORE_CONFIGURED_ENDPOINT_URLS", "").lower() == "true":
        return None
    return os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")


def _connected(url: str, options: Options | None) -> tuple[Any, str]:
    import fsspec

    given = fsspec_options(url, options)
    try:
        fs, path = fsspec.core.url_to_fs(url, **{"use_listings_cache": False, **given})
    except (ValueError, KeyError, ImportError) as error:
        raise InputError(f"cannot use {url}: {scrubbed(str(error), secret_texts(options))}") from None
    except TypeError:
        raise InputError(
            f"cannot use {url} with the storage options {', '.join(sorted(options_for(url, options)))}"
        ) from None
    if urlsplit(url).scheme in S3:
        fs.retries = 1
    return fs, str(path).rstrip("/")
