"""Tar shards of recordings, as WebDataset has them: members of one name are one sample.

Nothing is unpacked: what is noted of a recording is where its bytes lie in the tar, which is walked once. A tar of
which a part would be lost without a word is refused: a torn one, for one, or one whose samples lie about in pieces.
"""

from __future__ import annotations

import contextlib
import json
import logging
import tarfile
from collections.abc import Iterator
from itertools import groupby
from typing import IO, Any, NamedTuple, cast

from jobs.audio.audiofile import READABLE_SUFFIXES
from jobs.errors import InputError
from jobs.storage.inputs import open_input
from jobs.storage.lists import suffix_of
from jobs.storage.skim import Skimmed
from jobs.storage.urls import Options, is_url
from jobs.tokenize.loose_columns import legible

log = logging.getLogger(__name__)

PLACE_COLUMNS = ("path", "tar_offset", "tar_bytes")  # where a recording lies
PROBLEM_COLUMN = "tar_problem"  # why a recording has no id
OWN_COLUMNS = (*PLACE_COLUMNS, PROBLEM_COLUMN)
MOST_READ = 16 << 20  # bytes of a sample's json or text
MOST_SAID = 256 << 20  # bytes of all of these in one tar, which are in memory
READ = ("json", "txt")  # suffixes of members that say something of a recording
CHUNK = 1 << 20  # bytes
SORT = "tar --sort=name -cf NEW.tar -C FOLDER ."


class _Member(NamedTuple):
    key: str
    suffix: str
    offset: int  # of its bytes in the tar
    size: int
    content: bytes | None  # where it is to be read, unless it is too large


def tar_rows(url: str, options: Options | None = None) -> list[dict[str, Any]]:
    """A row for each recording in a tar.

    Its `id` is that of its sample's json, else the sample's key; then come `PLACE_COLUMNS`, a text as `txt`, and what
    else the json has, of which a key with one of the names of `OWN_COLUMNS` gets `source_` before it. The id of a
    sample whose json or text cannot be read is None, and its `PROBLEM_COLUMN` says why. Hidden members are none.

    Raises:
        InputError: no such file, not a tar that can be read at random, a torn one, more behind its end, or one in
            which members of a sample lie apart, a json is alone, or recordings are stored as sparse files.
    """
    try:
        with _opened(url, options) as file, tarfile.open(fileobj=file, mode="r:", errors="backslashreplace") as tar:
            rows = list(_samples(url, tar))
            _check_end(file, tar.offset)
            return rows
    except FileNotFoundError:
        raise InputError(f"no such file: {url}") from None
    except (tarfile.TarError, EOFError, ValueError) as error:
        raise InputError(
            f"{url} cannot be read as a tar: {error}; compressed tars have to be unpacked, torn ones made anew"
        ) from None


@contextlib.contextmanager
def _opened(url: str, options: Options | None) -> Iterator[IO[bytes]]:
    if is_url(url):
        yield cast(IO[bytes], Skimmed(url, options))
    else:  # to go to another place costs next to nothing
        with open_input(url) as file:
            yield file


def _check_end(file: IO[bytes], offset: int) -> None:
    """Raises tarfile.ReadError where a tar has no end, or where it is not the file's."""
    file.seek(offset)
    end = file.read(tarfile.BLOCKSIZE)
    if len(end) < tarfile.BLOCKSIZE or any(end):
        raise tarfile.ReadError(f"it stops at byte {offset} without the zeros that end a tar")
    while end:
        if any(end):
            raise tarfile.ReadError(
                f"more comes after its end at byte {offset}, as in tars joined by cat: give each as a file"
            )
        end = file.read(CHUNK)


def _samples(url: str, tar: tarfile.TarFile) -> Iterator[dict[str, Any]]:
    seen: set[str] = set()
    for key, members in groupby(_members(url, tar), key=lambda member: member.key):
        if key in seen:
            raise InputError(
                f"{url}: other samples come between the members of sample {key[:200]!r}; sort them: {SORT}"
            )
        seen.add(key)
        yield from _rows(url, key, list(members))


def _members(url: str, tar: tarfile.TarFile) -> Iterator[_Member]:
    """The recordings, and what is said of them."""
    said = 0
    for member in iter(tar.next, None):
        folder, _, base = member.name.rpartition("/")
        stem, _, rest = base.partition(".")
        suffix = rest.lower()
        if member.isfile() and stem and (suffix in READ or _is_recording(suffix)):
            if member.issparse() and suffix not in READ:
                raise InputError(
                    f"{url}: {legible(member.name)[:200]} is stored as a sparse file; make the tar without --sparse"
                )
            file = tar.extractfile(member) if suffix in READ and member.size <= MOST_READ else None
            content = None if file is None else file.read()
            said += len(content or b"")
            if said > MOST_SAID:
                raise InputError(f"{url}: its json and text have over {MOST_SAID} bytes; make several tars of it")
            key = f"{folder}/{stem}" if folder else stem
            yield _Member(legible(key), suffix, member.offset_data, member.size, content)
        tar.members.clear()  # type: ignore[attr-defined]  # it would keep them all


def _is_recording(suffix: str) -> bool:
    return suffix_of(f"x.{suffix}") in READABLE_SUFFIXES


def _rows(url: str, key: str, members: list[_Member]) -> Iterator[dict[str, Any]]:
    recordings = [member for member in members if _is_recording(member.suffix)]
    if not recordings:
        if any(member.suffix == "json" for member in members):
            raise InputError(
                f"{url}: no recording lies beside {key[:200]}.json, so that what it says would be lost; give both one "
                f"name in one folder, leave out what is no recording's, and sort them: {SORT}"
            )
        log.warning("%s: %s.txt has no recording of its name beside it and is left out", url, key[:200])
        return
    columns: dict[str, Any] = {"id": key}
    try:
        for member in members:
            if member.suffix in READ:
                columns |= _columns(member)
    except (ValueError, RecursionError) as error:
        problem = f"what is said of sample {key[:200]} cannot be read: {error}"
        log.warning("%s: %s; it has no id", url, problem)
        columns = {"id": None, PROBLEM_COLUMN: problem}
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
    return {f"source_{name}" if name in OWN_COLUMNS else name: value for name, value in values.items()}
