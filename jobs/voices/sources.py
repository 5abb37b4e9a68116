"""What a voice table is made from: a folder of clips, or a list of voice ids and paths."""

from __future__ import annotations

import io
import posixpath
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from jobs.audio.audiofile import READABLE_SUFFIXES
from jobs.errors import InputError, JobError
from jobs.parquet.footer import Footer, Group, footer_bytes
from jobs.parquet.pages import rows_at_once
from jobs.storage.folders import Folder
from jobs.storage.inputs import open_input
from jobs.storage.lists import beside, read_list, suffix_of
from jobs.storage.urls import Options, absolute_url

# Parquet keeps no minimum and maximum for very long values, and the table is searched by them.
MAX_VOICE_ID_BYTES = 1024

LIST_SUFFIXES = ("csv", "jsonl", "parquet")
LIST_COLUMNS = ("voice_id", "path")
MOST_LIST_BYTES = 1 << 30  # of both, in a Parquet file


@dataclass(frozen=True, slots=True)
class Source:
    """One clip that is to become a voice."""

    voice_id: str
    url: str


@dataclass(frozen=True, slots=True)
class VoiceFailure:
    """One entry of the input that did not become a voice."""

    voice_id: str | None
    source: str | None
    error: str  # a short code
    message: str


def find_sources(where: str, options: Options | None = None) -> tuple[list[Source], list[VoiceFailure]]:
    """The clips of an input, sorted by voice id, each id once.

    Args:
        where: a folder, whose audio files at any depth get their path without suffix as voice id; or a .csv, .jsonl
            or .parquet file with `voice_id` and `path`, where relative paths begin at the file's own folder.

    Returns:
        The sources, and the entries that cannot be one: `null_voice_id`, `null_path`, `long_voice_id`,
        `duplicate_voice_id` (all but the first of an id).

    Raises:
        InputError: no such input, no columns of that name, or nothing in it.
    """
    url = absolute_url(where)
    suffix = suffix_of(url)
    entries = list(_read_list(url, suffix, options) if suffix in LIST_SUFFIXES else _read_folder(url, options))
    if not entries:
        raise InputError(
            f"no clips in {url}: a folder of audio files, or a .csv, .jsonl or .parquet with rows is needed"
        )
    return _sort_out(entries)


def _read_folder(url: str, options: Options | None) -> Iterator[tuple[Any, Any]]:
    for name in Folder(url, options).list():
        hidden = any(part.startswith(".") for part in name.split("/"))
        if not hidden and suffix_of(name) in READABLE_SUFFIXES:
            yield posixpath.splitext(name)[0], f"{url.rstrip('/')}/{name}"


def _read_list(url: str, suffix: str, options: Options | None) -> Iterator[tuple[Any, Any]]:
    try:
        rows = _read_parquet(url, options) if suffix == "parquet" else _rows(url, options)
        for voice_id, path in rows:
            yield voice_id, beside(url, path) if isinstance(path, str) else path
    except KeyError as error:
        raise InputError(f"{url} has no column {error}; voice_id and path are needed") from None


def _rows(url: str, options: Options | None) -> Iterator[tuple[Any, Any]]:
    for row in read_list(url, options):
        yield row["voice_id"], row["path"]


def _read_parquet(url: str, options: Options | None) -> Iterator[tuple[Any, Any]]:
    try:
        with open_input(url, options) as file:
            yield from _parquet_rows(file.read())
    except FileNotFoundError:
        raise InputError(f"no such file: {url}") from None
    except JobError:
        raise
    except (ValueError, pa.ArrowException, OSError, MemoryError) as error:
        raise InputError(f"{url} cannot be read as parquet: {error or type(error).__name__}") from None


def _parquet_rows(data: bytes) -> Iterator[tuple[Any, Any]]:
    file = pq.ParquetFile(pa.BufferReader(data))
    for name in LIST_COLUMNS:
        if name not in file.schema_arrow.names:
            raise KeyError(name)
    footer = Footer(footer_bytes(io.BytesIO(data)))
    held = 0
    for number, group in enumerate(footer.groups()):
        rows = _rows_at_once(data, footer, group)
        batches = file.iter_batches(rows, row_groups=[number], columns=list(LIST_COLUMNS), use_threads=False)
        for batch in batches:
            held += batch.get_total_buffer_size()
            if held > MOST_LIST_BYTES:
                raise ValueError(f"its voice ids and paths take more than {MOST_LIST_BYTES >> 30} GiB of memory")
            yield from zip(*(batch.column(name).to_pylist() for name in LIST_COLUMNS), strict=True)


def _rows_at_once(data: bytes, footer: Footer, group: Group) -> int:
    """Of the columns that are read; whatever else the file holds does no harm."""
    read = [at for at, column in enumerate(footer.columns) if column.path.partition(".")[0] in LIST_COLUMNS]
    chunks = tuple(group.chunks[at] for at in read)
    return rows_at_once(io.BytesIO(data), [footer.columns[at] for at in read], replace(group, chunks=chunks))


def _sort_out(entries: Iterable[tuple[Any, Any]]) -> tuple[list[Source], list[VoiceFailure]]:
    sources: dict[str, Source] = {}
    failures: list[VoiceFailure] = []
    for voice_id, path in entries:
        failure = _fault(voice_id, path, sources)
        if failure is None:
            sources[voice_id] = Source(voice_id, path)
        else:
            failures.append(failure)
    return sorted(sources.values(), key=lambda source: source.voice_id), failures


def _fault(voice_id: Any, path: Any, taken: dict[str, Source]) -> VoiceFailure | None:
    shown_id, shown_path = _text(voice_id), _text(path)
    if not shown_id:
        return VoiceFailure(shown_id, shown_path, "null_voice_id", f"voice_id is {voice_id!r}, not a text")
    if not shown_path:
        return VoiceFailure(shown_id, shown_path, "null_path", f"path is {path!r}, not a text")
    if (size := len(shown_id.encode())) > MAX_VOICE_ID_BYTES:
        message = f"voice_id has {size} bytes; {MAX_VOICE_ID_BYTES} is the most"
        return VoiceFailure(shown_id, shown_path, "long_voice_id", message)
    if shown_id in taken:
        message = f"voice_id {shown_id!r} is already that of {taken[shown_id].url}"
        return VoiceFailure(shown_id, shown_path, "duplicate_voice_id", message)
    return None


def _text(value: Any) -> str | None:
    """The value if it is a text that UTF-8 can hold."""
    if not isinstance(value, str):
        return None
    return value if value.encode("utf-8", "ignore").decode() == value else None
