"""Files on any storage, seen as whole named objects: the only room that knows fsspec.

A ``Folder`` is a prefix under which names are read and written. Writes are all or nothing: a reader, and a listing, see
a complete object or none, whenever the writer dies.

- Local folders write to a hidden temporary name, flush to the disk and rename; ``create`` hard-links instead, which the
  file system refuses atomically when the name is taken.
- Object stores get one request per object (or one multipart upload, which appears when it is completed). File handles
  opened for writing are never used: fsspec commits what was written so far when an exception passes through them.

``create`` is put-if-absent. Stores differ: some honour ``If-None-Match``, some ignore it and overwrite. ``can_create``
finds out with a probe object, once per ``Folder``; whoever needs exclusion on a store without it has to find another
rule (see ``ledger``).

Errors come in two kinds: ``StorageError`` (nothing was written) and ``StorageUnknown`` (it may have been).
``FileNotFoundError`` keeps its name. No message holds a storage option or a secret of the environment.
"""

from __future__ import annotations

import contextlib
import errno
import glob
import io
import os
import re
import secrets
import shutil
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NoReturn, Protocol
from urllib.parse import parse_qsl, urlsplit

from jobs.errors import InputError, JobError, StorageError, StorageUnknown

PART_SUFFIX = ".part"  # of a local file that is still being written
READ_BLOCK = 1 << 22  # bytes per ranged request; fsspec's 50 MiB for S3 would fetch a file to read its footer
CREATES = frozenset(
    {"s3", "s3a", "memory"}
)  # fsspec's ``create`` is one atomic request here; elsewhere it looks, then writes
PUBLIC_OPTIONS = frozenset({"endpoint_url", "region_name", "anon", "requester_pays", "use_ssl"})
SECRET_ENVIRONMENT = ("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_ACCESS_KEY_ID")
SECRET_QUERY = frozenset(
    {"x-amz-signature", "x-amz-credential", "x-amz-security-token", "awsaccesskeyid", "signature", "sig"}
)

Options = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class InputStat:
    """What identifies a version of an input file."""

    url: str
    size: int  # bytes
    etag: str  # the store's ETag or checksum; of a local file its modification time in ns


def is_url(text: str) -> bool:
    """Whether ``text`` names a place by protocol (``s3://...``) and not by a local path."""
    scheme, separator, _ = text.partition("://")
    return bool(separator) and re.fullmatch(r"[A-Za-z][A-Za-z0-9+.:-]*", scheme) is not None


def absolute_url(path_or_url: str) -> str:
    """A local path made absolute (without ``file://``), or the URL as it is.

    Raises:
        InputError: an empty text, a chain of file systems, or a URL that carries credentials.
    """
    if not path_or_url.strip():
        raise InputError("an empty path: give a local path or a URL such as s3://bucket/folder")
    if path_or_url.startswith("file://"):
        path_or_url = path_or_url.removeprefix("file://")
    if not is_url(path_or_url):
        return os.path.abspath(os.path.expanduser(path_or_url))
    _refuse_secrets(path_or_url)
    return path_or_url


def _refuse_secrets(url: str) -> None:
    parts = urlsplit(url)
    bare = f"{parts.scheme}://...{parts.path}"
    if "::" in url:
        raise InputError(f"chained file systems are not supported: {bare}; give the URL of the file itself")
    if "@" in parts.netloc:
        raise InputError(f"the URL {bare} carries credentials; put them into storage_options or the environment")
    if any(key.lower() in SECRET_QUERY for key, _ in parse_qsl(parts.query)):
        raise InputError(f"the URL {bare} is a signed one, which would be stored; give a plain URL and storage_options")


def options_for(url: str, options: Options | None) -> dict[str, Any]:
    """The storage options that concern ``url``.

    ``options`` is either flat, for every URL, or one mapping per protocol (``{"s3": {...}, "https": {...}}``).
    Local paths take none.
    """
    if not options or not is_url(url):
        return {}
    if all(isinstance(value, Mapping) for value in options.values()) and not {"client_kwargs", "config_kwargs"} & set(
        options
    ):
        chosen = options.get(urlsplit(url).scheme, {})
        return dict(chosen)
    return dict(options)


# --- one folder -------------------------------------------------------------------------------------------------------


class _Store(Protocol):
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


class Folder:
    """A prefix in some file system, by URL or local path.

    Not for pickling: it may hold credentials and open connections. Send the URL, and make another one there.
    """

    def __init__(self, url: str, options: Options | None = None) -> None:
        self.url = absolute_url(url).rstrip("/") or "/"
        self._secrets = _secret_texts(options)
        self._can_create: bool | None = None
        with self._errors("open", "", writing=False):
            self._store: _Store = _RemoteStore(self.url, options) if is_url(self.url) else _LocalStore(self.url)

    def __repr__(self) -> str:
        return f"Folder({self.url!r})"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a Folder is not pickled: send its url, and make a Folder from it with the receiver's options")

    def path(self, name: str) -> str:
        """The URL of ``name``, for messages and records."""
        return f"{self.url.rstrip('/')}/{name}" if name else self.url

    def read(self, name: str) -> bytes:
        """The whole object, as it is now. FileNotFoundError when absent."""
        with self._errors("read", name, writing=False):
            return self._store.read(_checked(name))

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
        folder = prefix.rpartition("/")[0]
        with self._errors("list", prefix, writing=False):
            return sorted(name for name in self._store.list(folder) if name.startswith(prefix))

    def delete_partial(self, prefix: str = "") -> None:
        """Deletes what killed writers left unfinished under ``prefix`` (only local folders have such files)."""
        with self._errors("list", prefix, writing=True):
            for name in list(self._store.partial(prefix.rstrip("/"))):
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
            self._store.create(name, b"first")
            with contextlib.suppress(FileExistsError):
                self._store.create(name, b"second")
                return False
            return self._store.read(name) == b"first"
        except (OSError, NotImplementedError) as error:
            if _unsupported(error):
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
        # A local write fails before its rename, so its outcome is always known.
        uncertain = writing and is_url(self.url)
        raise _translated(f"cannot {verb} {self.path(name)}", error, self._secrets, uncertain=uncertain) from error


def _checked(name: str) -> str:
    if not name or name.startswith("/") or name.endswith("/") or any(p in ("", ".", "..") for p in name.split("/")):
        raise ValueError(f"not a name inside a folder: {name!r}")
    return name


class _LocalStore:
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


class _RemoteStore:
    # The in-memory file system looks, then writes: its threads need this to be one step.
    _memory_lock = threading.Lock()

    def __init__(self, url: str, options: Options | None) -> None:
        self._fs, self._root = _filesystem(url, options)
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
                if _status(error) == 412:
                    raise FileExistsError(name) from error
                raise

    def upload(self, name: str, local_path: str) -> None:
        if self._protocol in CREATES:
            self._fs.put_file(local_path, self._path(name))
        else:
            self.put(name, Path(local_path).read_bytes())

    def open(self, name: str) -> IO[bytes]:
        return _open(self._fs, self._path(name))

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


def _filesystem(url: str, options: Options | None) -> tuple[Any, str]:
    """The file system of ``url`` and the path in it. Listings are never cached: a resume has to see what is there."""
    import fsspec

    given = options_for(url, options)
    try:
        fs, root = fsspec.core.url_to_fs(url, **{"use_listings_cache": False, **given})
    except (ValueError, ImportError) as error:
        raise InputError(f"cannot use {url}: {_scrubbed(str(error), _secret_texts(options))}") from None
    except TypeError:
        raise InputError(f"cannot use {url} with the storage options {', '.join(sorted(given))}") from None
    return fs, str(root).rstrip("/")


def _open(fs: Any, path: str) -> IO[bytes]:
    if "memory" in ([fs.protocol] if isinstance(fs.protocol, str) else fs.protocol):
        # Its files share one position between all their readers.
        return io.BytesIO(fs.cat_file(path))
    handle: IO[bytes] = fs.open(path, "rb", block_size=READ_BLOCK)
    return handle


# --- single inputs ----------------------------------------------------------------------------------------------------


def open_input(url: str, options: Options | None = None) -> IO[bytes]:
    """One file anywhere, for random-access reading. FileNotFoundError when absent."""
    url = absolute_url(url)
    with _input_errors("read", url, options):
        if not is_url(url):
            return open(url, "rb")
        return _open(*_filesystem(url, options))


def stat_input(url: str, options: Options | None = None) -> InputStat:
    """Size and version of one file. FileNotFoundError when absent."""
    url = absolute_url(url)
    with _input_errors("look at", url, options):
        if not is_url(url):
            found = os.stat(url)
            return InputStat(url=url, size=found.st_size, etag=str(found.st_mtime_ns))
        fs, path = _filesystem(url, options)
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
    fs, path = _filesystem(url, options)
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


# --- errors -----------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _input_errors(verb: str, url: str, options: Options | None) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        raise FileNotFoundError(errno.ENOENT, "no such file", url) from None
    except JobError:
        raise
    except Exception as error:
        raise _translated(f"cannot {verb} {url}", error, _secret_texts(options), uncertain=False) from error


def _translated(what: str, error: Exception, hidden: list[str], *, uncertain: bool) -> JobError:
    reason = _scrubbed(str(error) or type(error).__name__, hidden)
    if isinstance(error, TypeError):  # s3fs looks at its options only when it connects
        return InputError(f"{what}: a storage option is not accepted: {reason}")
    if not uncertain or _surely_failed(error):
        return StorageError(f"{what}: {reason}")
    return StorageUnknown(f"{what}: {reason} (it may have been written all the same)")


def _surely_failed(error: Exception) -> bool:
    """Whether a write that raised ``error`` can be known to have left nothing."""
    from botocore.exceptions import EndpointConnectionError, NoCredentialsError, ParamValidationError

    status = _status(error)
    if status is not None:
        return 400 <= status < 500 and status not in (408, 409, 429)
    if isinstance(error, EndpointConnectionError | NoCredentialsError | ParamValidationError):
        return True
    if isinstance(
        error, PermissionError | FileNotFoundError | FileExistsError | NotADirectoryError | IsADirectoryError
    ):
        return True
    return isinstance(error, ValueError | TypeError | NotImplementedError)


def _status(error: BaseException | None) -> int | None:
    """The HTTP status behind an error of s3fs, which keeps botocore's answer as the cause."""
    while error is not None:
        response = getattr(error, "response", None)
        if isinstance(response, Mapping):
            status = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
            return int(status) if status else None
        error = error.__cause__
    return None


def _unsupported(error: Exception) -> bool:
    known = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)
    refused = isinstance(error, OSError) and error.errno in known
    return isinstance(error, NotImplementedError) or refused or _status(error) == 501


def _secret_texts(options: Options | None) -> list[str]:
    """The texts that no message may hold, longest first."""
    found = {os.environ.get(name, "") for name in SECRET_ENVIRONMENT}
    pending: list[tuple[str, Any]] = list((options or {}).items())
    while pending:
        key, value = pending.pop()
        if isinstance(value, Mapping):
            pending.extend(value.items())
        elif isinstance(value, str) and key not in PUBLIC_OPTIONS:
            found.add(value)
    return sorted((text for text in found if len(text) > 3), key=len, reverse=True)


def _scrubbed(text: str, hidden: list[str]) -> str:
    for secret in hidden:
        text = text.replace(secret, "***")
    return text
