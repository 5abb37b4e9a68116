"""fsspec's file systems, by URL: no other room of the batch system imports it."""

from __future__ import annotations

import io
from typing import IO, Any

from jobs.credentials import scrubbed, secret_texts
from jobs.errors import InputError
from jobs.urls import Options, options_for

READ_BLOCK = 1 << 22  # bytes per ranged request; fsspec's 50 MiB for S3 would fetch a file to read its footer


def filesystem(url: str, options: Options | None) -> tuple[Any, str]:
    """The file system of ``url`` and the path in it. Listings are never cached: a resume has to see what is there."""
    import fsspec

    given = options_for(url, options)
    try:
        fs, root = fsspec.core.url_to_fs(url, **{"use_listings_cache": False, **given})
    except (ValueError, ImportError) as error:
        raise InputError(f"cannot use {url}: {scrubbed(str(error), secret_texts(options))}") from None
    except TypeError:
        raise InputError(f"cannot use {url} with the storage options {', '.join(sorted(given))}") from None
    return fs, str(root).rstrip("/")


def open_file(fs: Any, path: str) -> IO[bytes]:
    if "memory" in ([fs.protocol] if isinstance(fs.protocol, str) else fs.protocol):
        # Its files share one position between all their readers.
        return io.BytesIO(fs.cat_file(path))
    handle: IO[bytes] = fs.open(path, "rb", block_size=READ_BLOCK)
    return handle
