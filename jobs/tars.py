"""Tar shards of recordings, as WebDataset has them: members of one name are one sample.

Nothing is unpacked: what is noted of a recording is where its bytes lie in the tar, which is walked once.
"""

from __future__ import annotations

import json
import logging
import tarfile
from collections.abc import Iterator
from itertools import groupby
from typing import Any, NamedTuple

from jobs.audiofile import READABLE_SUFFIXES
from jobs.columns import legible
from jobs.errors import InputError
from jobs.inputs import open_input
from jobs.lists import suffix_of
from jobs.urls import Options

log = logging.getLogger(__name__)

PLACE_COLUMNS = ("path", "tar_offset", "tar_bytes")  # where a recording lies
MOST_READ = 16 << 20  # bytes of a sample's json or text
READ = ("json", "txt")  # suffixes of members that say something of a recording


class _Member(NamedTuple):
    key: str
    suffix: str
    offset: int  # of its bytes in the tar
    size: int
    content: bytes | None  # where it is to be read, unless it is too large


def tar_rows(url: str, options: Options | None = None) -> list[dict[str, Any]]:
    """A row for each recording in a tar.

    Its `id` is that of its sample's json, else the sample's key; then come `PLACE_COLUMNS`, a text as `txt`, and what
    else the json has, of which a key with one of the names of places gets `source_` before it. The id of a sample whose
    json or text cannot be read is None.

    Raises:
        InputError: no such file, not a tar that can be read at random, or a torn one.
    """
    try:
        with open_input(url, options) as file, tarfile.open(fileobj=file, mode="r:", errors="backslashreplace") as tar:
            samples = groupby(_members(tar), key=lambda member: member.key)
            return [row for key, members in samples for row in _rows(url, key, list(members))]
    except FileNotFoundError:
        raise InputError(f"no such file: {url}") from None
    except (tarfile.TarError, EOFError, ValueError) as error:
        raise InputError(
            f"{url} cannot be read as a tar: {error}; compressed tars have to be unpacked, torn ones made anew"
        ) from None


def _members(tar: tarfile.TarFile) -> Iterator[_Member]:
    for member in iter(tar.next, None):
        if member.isfile():
            folder, _, base = member.name.rpartition("/")
            stem, _, rest = base.partition(".")
            file = tar.extractfile(member) if rest.lower() in READ and member.size <= MOST_READ else None
            content = None if file is None else file.read()
            key = f"{folder}/{stem}" if folder else stem
            yield _Member(legible(key), rest.lower(), member.offset_data, member.size, content)
        tar.members.clear()  # type: ignore[attr-defined]  # it would keep them all


def _rows(url: str, key: str, members: list[_Member]) -> Iterator[dict[str, Any]]:
    recordings = [member for member in members if suffix_of(f"x.{member.suffix}") in READABLE_SUFFIXES]
    if not recordings:
        return
    columns: dict[str, Any] = {"id": key}
    try:
        for member in members:
            if member.suffix in READ:
                columns |= _columns(member)
    except (ValueError, RecursionError) as error:
        log.warning("%s: what is said of sample %s cannot be read, so it has no id: %s", url, key[:200], error)
        columns = {"id": None}
    for member in recordings:
        place = dict(zip(PLACE_COLUMNS, (url, member.offset, member.size), strict=True))
        yield {"id": columns["id"], **place, **columns}


def _columns(member: _Member) -> dict[str, Any]:
    if member.content is None:
        raise ValueError(f"its {member.suffix} has {member.size} bytes; {MOST_READ} are the most")
    if member.suffix == "txt":
        return {"txt": member.content.decode()}
    values = json.loads(member.content)
    if not isinstance(values, dict):
        raise ValueError("its json is not an object")
    return {f"source_{name}" if name in PLACE_COLUMNS else name: value for name, value in values.items()}
