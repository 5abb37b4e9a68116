"""The manifest: Parquet files with the speech tokens of each utterance. What its rows go through is in ``rows``.

Required columns: ``id`` (text, unique), ``tokens`` (list of integers), ``voice_id`` (text). Optional: ``seed``
(integers; a float column, which pandas makes of integers with gaps, holds whole numbers of up to 2**53). Every width
of integer, every kind of list and every kind of text is taken. All other columns travel into the output unchanged.

A failures table is itself a manifest: a file with the four columns that such a table adds (``error``, ``message``,
``manifest``, ``row``) is read without them.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from jobs.errors import InputError, JobError
from jobs.manifest.columns import check_columns, without_failure_columns
from jobs.parquet.footer import Column, Footer, Group, footer_bytes
from jobs.parquet.pages import MOST_VALUES, VALUES_PER_BYTE, fixed_bytes, rows_at_once
from jobs.storage.faults import as_input
from jobs.storage.filesystems import READ_BLOCK
from jobs.storage.inputs import expand, open_input, stat_input
from jobs.storage.urls import Options, is_url

SUFFIXES = (".parquet", ".parq", ".pq")  # of the files of a folder that are taken
AUDIO_LEAVES = ("audio.bytes", "audio")  # where a file that is to become tokens has its recordings

MOST_READ = 2 << 30  # bytes of one shard's rows
MOST_DECODED = 256 << 30  # bytes of a row group up to the last row that is wanted
ROWS_PER_BYTE = 1_024  # more no file holds, however its rows repeat each other
TOKENS_PER_ROW = 100_000  # more than an hour of speech, on the average of a row group
STREAMED_BYTES = 64 << 20  # a row group above this is decoded piece by piece, not fetched as a whole
SCAN_THREADS = 16

Ints = npt.NDArray[np.int64]


class Span(NamedTuple):
    """Rows ``start`` to ``stop`` (exclusive) of the manifest's file number ``file``."""

    file: int
    start: int
    stop: int


@dataclass(frozen=True, kw_only=True, slots=True)
class ManifestFile:
    """One file, and what identifies its content."""

    url: str
    rows: int
    size: int  # bytes
    etag: str
    footer_digest: str  # sha256 of the Parquet footer, which holds sizes and statistics of every column


@dataclass(frozen=True, slots=True)
class RowGroups:
    """Rows of each row group of a file, and how many token values, or else bytes of audio, they hold; for planning."""

    rows: Ints
    tokens: Ints


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """The files of a job's input, in order, as one table.

    Attributes:
        columns: the names and types of all columns, without file metadata.
        digest: sha256 over URLs, sizes, ETags and footers: another digest is another manifest.
        base: where files lie whose URLs are relative.
        groups: per file; only after ``scan`` or ``of``.
    """

    files: tuple[ManifestFile, ...]
    columns: pa.Schema
    base: str = field(default="", compare=False)
    groups: tuple[RowGroups, ...] = field(default=(), compare=False, repr=False)
    # How many rows of a row group may be decoded at a time; of those that were looked at.
    _at_once: dict[tuple[int, int], int] = field(default_factory=dict, init=False, compare=False, repr=False)
    # Of the file that was read last: its spans mostly follow each other.
    _last: dict[int, _Layout] = field(default_factory=dict, init=False, compare=False, repr=False)

    @cached_property
    def rows(self) -> int:
        """Rows of all files."""
        return sum(file.rows for file in self.files)

    @cached_property
    def _fixed(self) -> int:
        return sum(fixed_bytes(field.type) for field in self.columns)

    @cached_property
    def digest(self) -> str:
        """Hex sha256 of what identifies the files."""
        lines = [[f.url, f.rows, f.size, f.etag, f.footer_digest] for f in self.files]
        return hashlib.sha256(json.dumps(lines).encode()).hexdigest()

    @classmethod
    def scan(cls, pattern: str, options: Options | None = None) -> Manifest:
        """Reads the footers of the files of a path, glob, folder or URL.

        Raises:
            InputError: no such file, not Parquet, no rows, missing, doubled or forbidden columns, wrong types, files
                that differ in their columns. The message names file, column and type. Or nobody may read it.
            StorageError: its store does not answer.
        """
        with as_input("manifest"):
            manifest = cls.of(expand(pattern, options, suffixes=SUFFIXES), options, check=check_columns)
        if not manifest.rows:
            raise InputError(f"manifest: {pattern} has no rows; give one with at least one utterance")
        return manifest

    @classmethod
    def of(
        cls, urls: Sequence[str], options: Options | None = None, *, check: Callable[[str, pa.Schema], None]
    ) -> Manifest:
        """Reads the footers of Parquet files.

        Args:
            urls: one or more.
            check: is given the URL and the columns of each file, and raises an InputError for what is not right.

        Raises:
            InputError: no such file, not Parquet, files that differ in their columns, or what ``check`` raises.
        """
        with ThreadPoolExecutor(SCAN_THREADS) as pool:
            footers = list(pool.map(lambda url: _read_footer(url, options), urls))
        for footer in footers:
            check(footer.file.url, footer.schema)
            _check_same(footers[0], footer)
        return cls(
            files=tuple(footer.file for footer in footers),
            columns=footers[0].schema,
            groups=tuple(footer.groups for footer in footers),
        )

    def head(self, rows: int) -> Manifest:
        """Its first rows: the last file that holds any is as it is, but counts for fewer."""
        files: list[ManifestFile] = []
        for file in self.files:
            if rows > 0:
                files.append(replace(file, rows=min(file.rows, rows)))
            rows -= file.rows
        return replace(self, files=tuple(files), groups=())

    def read(self, spans: Sequence[Span], options: Options | None = None) -> pa.Table:
        """The rows of ``spans``, in their order; only the row groups that hold them are read.

        Raises:
            InputError: a file has changed since it was scanned, is gone, or is damaged; or the rows take more memory
                than any rows of speech. The message names file, rows and row group.
        """
        batches: list[pa.RecordBatch] = []
        held = 0
        for span in spans:
            for batch in self._read_span(span, options):
                batches.append(batch)
                held += batch.get_total_buffer_size()
                if held > MOST_READ:
                    raise InputError(
                        f"{self.files[span.file].url}: rows {span.start} to {span.stop} take more than "
                        f"{MOST_READ >> 30} GiB of memory; give a smaller shard_rows, or drop large columns"
                    )
        return pa.Table.from_batches(batches, schema=self.columns)

    def batches(self, spans: Sequence[Span], options: Options | None = None) -> Iterator[pa.RecordBatch]:
        """The same, some rows at a time: memory is bounded, however large all rows of ``spans`` are together."""
        return (batch for span in spans for batch in self._read_span(span, options))

    def origins(self, spans: Sequence[Span]) -> tuple[list[str], Ints]:
        """Where the rows of ``spans`` come from: the URL of each one's file and its row number there."""
        urls = [self.files[span.file].url for span in spans for _ in range(span.start, span.stop)]
        rows = [np.arange(span.start, span.stop, dtype=np.int64) for span in spans]
        return urls, np.concatenate(rows) if rows else np.zeros(0, np.int64)

    def _read_span(self, span: Span, options: Options | None) -> Iterator[pa.RecordBatch]:
        file = self.files[span.file]
        url = file.url if is_url(file.url) or os.path.isabs(file.url) else f"{self.base}/{file.url}"
        where = f"{url}: cannot read rows {span.start} to {span.stop}"
        try:
            with open_input(url, options) as handle:
                data = footer_bytes(handle)
                if hashlib.sha256(data).hexdigest() != file.footer_digest:
                    raise InputError(f"{url}: the file has changed since the job was planned")
                layout = self._layout(span.file, data)
                parquet = layout.opened(handle)
                for number, group, start, stop in layout.parts(span):
                    where = f"{url}: cannot read rows {span.start} to {span.stop} (row group {number})"
                    if (span.file, number) not in self._at_once:
                        self._at_once[span.file, number] = rows_at_once(handle, layout.columns, group, self._fixed)
                    for batch in _batches(parquet, number, start, stop, self._at_once[span.file, number]):
                        arrays = [batch.column(name) for name in self.columns.names]
                        yield pa.RecordBatch.from_arrays(arrays, schema=self.columns)
        except FileNotFoundError:
            raise InputError(f"{url}: no such file") from None
        except JobError:
            raise
        except Exception as error:  # damaged pages can make the reader raise anything
            raise InputError(f"{where}: {_reason(error)}") from None

    def _layout(self, file: int, footer: bytes) -> _Layout:
        layout = self._last.get(file)
        if layout is None:
            layout = _Layout.of(Footer(footer))
            self._last.clear()
            self._last[file] = layout
        return layout


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:500] or type(error).__name__


@dataclass(frozen=True, slots=True)
class _Layout:
    """Where the row groups of a file are.

    Attributes:
        ats: where each begins in the footer.
        ends: (G,) the first row after each.
        largest: bytes of the largest one.
    """

    footer: Footer
    ats: Ints
    ends: Ints
    largest: int

    @classmethod
    def of(cls, footer: Footer) -> _Layout:
        groups = [(group.at, group.rows, group.bytes) for group in footer.groups()]
        ats, rows, sizes = np.array(groups, np.int64).reshape(-1, 3).T
        return cls(footer, ats, np.cumsum(rows), int(sizes.max(initial=0)))

    @property
    def columns(self) -> list[Column]:
        return self.footer.columns

    def opened(self, handle: IO[bytes]) -> pq.ParquetFile:
        """Buffers the columns of very large row groups instead of fetching them whole."""
        large = self.largest > STREAMED_BYTES
        return pq.ParquetFile(handle, buffer_size=READ_BLOCK) if large else pq.ParquetFile(handle)

    def parts(self, span: Span) -> Iterator[tuple[int, Group, int, int]]:
        """The row groups that hold a span's rows: number, group, and first and last row (exclusive) in the group."""
        for number in range(int(np.searchsorted(self.ends, span.start, side="right")), len(self.ends)):
            begin = int(self.ends[number - 1]) if number else 0
            if begin >= span.stop:
                return
            start, stop = max(span.start, begin), min(span.stop, int(self.ends[number]))
            if start < stop:
                yield number, self.footer.group(int(self.ats[number])), start - begin, stop - begin


def _batches(parquet: pq.ParquetFile, group: int, start: int, stop: int, at_once: int) -> Iterator[pa.RecordBatch]:
    """The rows ``start`` to ``stop`` of a row group; stops decoding as soon as it has them."""
    at = decoded = 0
    for batch in parquet.iter_batches(batch_size=at_once, row_groups=[group], use_threads=False):
        decoded += batch.get_total_buffer_size()
        if decoded > MOST_DECODED:
            raise ValueError(f"its first {at + batch.num_rows} rows take more than {MOST_DECODED >> 30} GiB")
        low, high = max(start - at, 0), min(stop - at, batch.num_rows)
        at += batch.num_rows
        if low < high:
            yield batch.slice(low, high - low)
        if at >= stop:
            return
    raise ValueError(f"it ends after {at} rows, {stop} of them are needed")


@dataclass(frozen=True, slots=True)
class _Footer:
    file: ManifestFile
    schema: pa.Schema
    groups: RowGroups


def _read_footer(url: str, options: Options | None) -> _Footer:
    try:
        stat = stat_input(url, options)
        with open_input(url, options) as handle:
            data = footer_bytes(handle)
            handle.seek(0)
            found = pq.ParquetFile(handle).schema_arrow
        # Names and types are all that the files of a manifest must share.
        columns = pa.schema([pa.field(each.name, each.type) for each in found])
        footer = Footer(data)
        groups = _row_groups(footer)
        _check_counts(footer.rows, groups, stat.size)
    except FileNotFoundError:
        raise InputError(f"{url}: no such file") from None
    except JobError:
        raise
    except Exception as error:  # a damaged or hostile footer can make the reader raise anything
        raise InputError(f"{url}: not a Parquet file that can be read: {_reason(error)}") from None
    digest = hashlib.sha256(data).hexdigest()
    file = ManifestFile(url=url, rows=footer.rows, size=stat.size, etag=stat.etag, footer_digest=digest)
    return _Footer(file, without_failure_columns(columns), groups)


def described(url: str, local: Path) -> tuple[ManifestFile, RowGroups]:
    """A file of a manifest that was made here, and that nobody changes.

    Args:
        url: where it will lie.
    """
    with local.open("rb") as handle:
        version = hashlib.file_digest(handle, "sha256").hexdigest()
        data = footer_bytes(handle)
    footer = Footer(data)
    digest = hashlib.sha256(data).hexdigest()
    file = ManifestFile(url=url, rows=footer.rows, size=local.stat().st_size, etag=version, footer_digest=digest)
    return file, _row_groups(footer)


def _check_counts(rows: int, groups: RowGroups, size: int) -> None:
    """Whether a footer's numbers can be planned with: a shard for every 500 rows of a forged one fills any memory."""
    held = sum(groups.rows.tolist())
    if min(groups.rows.tolist(), default=0) < 0 or held != rows:
        raise ValueError(f"its footer claims {rows} rows, its row groups {held}")
    if rows > ROWS_PER_BYTE * size:
        raise ValueError(f"its footer claims {rows} rows, in a file of {size} bytes")
    for count, tokens in zip(groups.rows.tolist(), groups.tokens.tolist(), strict=True):
        if not 0 <= tokens <= max(VALUES_PER_BYTE * size + MOST_VALUES, TOKENS_PER_ROW * count):
            raise ValueError(
                f"its footer claims {tokens} tokens in a row group of {count} rows, in a file of {size} bytes"
            )


def _row_groups(footer: Footer) -> RowGroups:
    # By its path alone a plain column called "tokens.x" would look the same.
    leaves = [at for at, column in enumerate(footer.columns) if column.path.startswith("tokens.") and column.repeated]
    audio = [at for at, column in enumerate(footer.columns) if column.path in AUDIO_LEAVES]
    counts = [(group.rows, _size(group, leaves[:1], audio[:1])) for group in footer.groups()]
    rows, tokens = np.array(counts, np.int64).reshape(-1, 2).T
    return RowGroups(rows=rows, tokens=tokens)


def _size(group: Group, leaves: Sequence[int], audio: Sequence[int]) -> int:
    return sum(group.chunks[at].values for at in leaves) or sum(group.chunks[at].stored for at in audio)


def _check_same(first: _Footer, other: _Footer) -> None:
    if first.schema.equals(other.schema):
        return
    ours, theirs = first.schema, other.schema
    for name in [*ours.names, *(name for name in theirs.names if name not in ours.names)]:
        kinds = [str(s.field(name).type) if s.get_field_index(name) >= 0 else "absent" for s in (ours, theirs)]
        if kinds[0] != kinds[1]:
            raise InputError(
                f"the files of a manifest must have the same columns: {name!r} is {kinds[0]} in {first.file.url} and "
                f"{kinds[1]} in {other.file.url}"
            )
    # Same names and types in another order, or another nullability: reading by name takes care of it.
