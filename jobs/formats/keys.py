"""Names of samples: ids of any kind made into names that tar files, URLs and file systems accept."""

from __future__ import annotations

import hashlib
import string
from urllib.parse import quote, unquote

MAX_KEY_BYTES = 120
PREFIX_BYTES = 80  # of the escaped id, at the start of the key of a long one
DIGEST_DIGITS = 32  # hex digits of the id's sha256, at the end of it

EMPTY_KEY = "%"  # no escape is a lone per cent sign
HEX_DIGITS = frozenset(string.hexdigits.lower())


def key_of(row_id: str) -> str:
    """The key of an id: ASCII letters, digits, `_`, `-`, `~` and `%XX` escapes; no dots, no slashes, never empty.

    Every other byte of the id's UTF-8 becomes `%XX`, so `id_of` gives the id back. A key of more than 120 bytes
    is its first 80 and 32 hex digits of the id's sha256 instead. Two ids never share a key: a short key that
    looks like one of those has its last character escaped too, which changes its length and not its meaning.
    """
    key = quote(row_id, safe="").replace(".", "%2E") or EMPTY_KEY
    if len(key) > MAX_KEY_BYTES:
        return key[:PREFIX_BYTES] + hashlib.sha256(row_id.encode()).hexdigest()[:DIGEST_DIGITS]
    if _looks_shortened(key):
        return f"{key[:-1]}%{ord(key[-1]):02X}"
    return key


def id_of(key: str) -> str | None:
    """The id of a key, or None for a shortened key, which does not hold it all."""
    if _looks_shortened(key):
        return None
    return "" if key == EMPTY_KEY else unquote(key, errors="strict")


def _looks_shortened(key: str) -> bool:
    return len(key) == PREFIX_BYTES + DIGEST_DIGITS and HEX_DIGITS.issuperset(key[-DIGEST_DIGITS:])
