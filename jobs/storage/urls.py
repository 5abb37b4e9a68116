"""Where files are: local paths and URLs, and the storage options that concern one."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from jobs.errors import InputError

# Names, in the query of a URL, of what gives whoever has it access: signatures of the stores, tokens, passwords.
GIVING_ACCESS = (
    r"[\w.-]*(?:signature|credentials?|token|secret|password|passwd|access[_-]?key(?:[_-]?id)?|api[_-]?key)"
    r"|sig|policy|key-pair-id|googleaccessid"
)

Options = Mapping[str, Any]


def is_url(text: str) -> bool:
    """Whether ``text`` names a place by protocol (``s3://...``) and not by a local path."""
    scheme, separator, _ = text.partition("://")
    return bool(separator) and re.fullmatch(r"[A-Za-z][A-Za-z0-9+.:-]*", scheme) is not None


def store_of(url: str) -> str:
    """What serves ``url``: its protocol with the bucket or host."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc}"


def absolute_url(path_or_url: str) -> str:
    """A local path made absolute (without ``file://``), or the URL as it is.

    Raises:
        InputError: an empty text, one that is no path, a chain of file systems, or a URL that carries credentials.
    """
    if not path_or_url.strip():
        raise InputError("an empty path: give a local path or a URL such as s3://bucket/folder")
    if "\0" in path_or_url or any("\ud800" <= letter <= "\udfff" for letter in path_or_url):
        raise InputError(f"a path cannot hold a NUL or what is not Unicode: {path_or_url!a}")
    if path_or_url.startswith("file://"):
        path_or_url = path_or_url.removeprefix("file://")
    if not is_url(path_or_url):
        return os.path.abspath(os.path.expanduser(path_or_url))
    refuse_secrets(path_or_url)
    return path_or_url


def refuse_secrets(url: str) -> None:
    """Refuses a URL that carries credentials, and with it what cannot be looked through for them (InputError)."""
    try:
        parts = urlsplit(url)
    except ValueError:
        # Python's own message holds the text, and with it what may be a password.
        raise InputError(
            "a URL that cannot be read: its host is malformed; give one such as s3://bucket/folder"
        ) from None
    bare = f"{parts.scheme}://...{parts.path}"
    if "::" in url:
        raise InputError(f"chained file systems are not supported: {bare}; give the URL of the file itself")
    if "@" in parts.netloc:
        raise InputError(f"the URL {bare} carries credentials; put them into storage_options or the environment")
    given = parse_qsl(parts.query.replace(";", "&")) + parse_qsl(parts.fragment)
    if any(re.fullmatch(GIVING_ACCESS, key, re.IGNORECASE) for key, _ in given):
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
