"""What the pages of a Parquet file claim to hold, looked at before anything of them is decoded.

A reader allocates what a page says of itself, and a few stored bytes may speak for billions of values: a run of equal
levels, a dictionary with one long entry, zeros that were compressed. So the headers of all pages are read first, which
costs some dozens of bytes each; what cannot be true of speech is refused, and how many rows may be decoded at a time
follows from the rest. The footer is not asked how large pages are, since nothing makes it agree with them.

Numbers of fields are those of ``PageHeader``, in the file that ``footer`` names.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import IO

import pyarrow as pa

from jobs.footer import Chunk, Column, Footer, Group, footer_bytes
from jobs.thrift import STRUCT, Compact

MOST_AT_ONCE = 512 << 20  # bytes that a batch of rows may take, lists of numbers aside
MOST_ROWS = 8_192  # of a batch
LONG_ROW = 1 << 20  # bytes that few stored ones may speak for; of longer rows a row group ...
MOST_OF_GROUP = 64 << 30  # ... may hold so many bytes
MOST_OF_ROW = 64 << 20
MOST_VALUES = 1 << 24  # in the lists of a column chunk, whatever few bytes it takes; beyond that ...
VALUES_PER_BYTE = 128  # ... so many for each stored byte
MOST_PAGE_BYTES = 64 << 20  # of a page, decompressed; beyond that ...
BYTES_PER_BYTE = 128  # ... so many for each stored byte
NUMBER_BYTES = 16  # the widest, a decimal, has twice as many
SMALL_DICTIONARY = 8_192  # bytes; no entry of it is long
FIRST_READ, LAST_READ = 256, 1 << 22  # bytes of a page's header, which may hold a minimum and a maximum

BYTES, FIXED_BYTES = 6, 7  # types of columns
CODECS = {1: "snappy", 2: "gzip", 4: "brotli", 6: "zstd", 7: "lz4_raw"}  # those that pyarrow decompresses by themselves
DATA_PAGE, DICTIONARY_PAGE, DATA_PAGE_V2 = 5, 7, 8
ENCODING = {DATA_PAGE: 2, DATA_PAGE_V2: 4}  # its field
DELTA_BYTE_ARRAY = 7  # an encoding where each text may repeat the one before


@dataclass(frozen=True, slots=True)
class _Header:
    """A page's header, as far as it matters."""

    size: int  # of the header itself
    unpacked: int
    stored: int
    kind: int = 0
    values: int = 0
    encoding: int = 0


@dataclass(slots=True)
class _Claims:
    """What the pages of one column chunk claim.

    Attributes:
        values: in all data pages, nulls included.
        total, largest: bytes of all data pages and of the largest one, decompressed.
        entry: bytes of the longest value that few stored bytes may repeat.

    Of numbers only ``values`` matters, and of these only in lists: they take no more than 16 bytes each.
    """

    values: int = 0
    total: int = 0
    largest: int = 0
    entry: int = 0

    def of_rows(self, rows: int) -> int:
        """Bytes that so many rows take at most, lists aside."""
        return min(self.total, rows * self.largest) + rows * self.entry


def rows_at_once(file: IO[bytes], columns: list[Column], group: Group, fixed: int = 0) -> int:
    """How many rows of a row group may be decoded at a time.

    Args:
        file: seekable, at any position.
        fixed: bytes that each row takes in lists of fixed length, even where it is null.

    Raises:
        ValueError: its pages are damaged, or claim what their bytes cannot hold; names the column.
    """
    size = file.seek(0, 2)
    claims = [_column(file, size, *each) for each in zip(columns, group.chunks, strict=True)]
    longest = fixed + sum(claim.entry for claim in claims)
    # Rows before those that are wanted are decoded, too, and that takes its time.
    if longest > MOST_OF_ROW or (longest > LONG_ROW and longest * group.rows > MOST_OF_GROUP):
        raise ValueError(f"{group.rows} rows claim to take up to {longest} bytes each")
    rows = MOST_ROWS
    while rows > 1 and rows * fixed + sum(claim.of_rows(rows) for claim in claims) > MOST_AT_ONCE:
        rows //= 2
    return rows


def fixed_bytes(kind: pa.DataType) -> int:
    """Bytes that a row of a type takes in lists of fixed length."""
    if isinstance(kind, pa.BaseExtensionType):
        return fixed_bytes(kind.storage_type)
    if pa.types.is_fixed_size_list(kind):
        return kind.list_size * max(NUMBER_BYTES, fixed_bytes(kind.value_type))
    return sum(fixed_bytes(kind.field(place).type) for place in range(kind.num_fields))


def check_pages(file: IO[bytes]) -> Footer:
    """A whole file's footer, when all its pages may be decoded. ValueError as above."""
    footer = Footer(footer_bytes(file))
    for group in footer.groups():
        rows_at_once(file, footer.columns, group)
    return footer


def _column(file: IO[bytes], size: int, column: Column, chunk: Chunk) -> _Claims:
    try:
        claims = _claims(file, size, column, chunk)
        if column.type == FIXED_BYTES:
            claims.entry = column.width  # of a null, too
        if column.type != BYTES:
            claims.total = claims.largest = 0
        if column.repeated:
            _check_lists(claims, chunk.stored)
            claims.entry = 0
    except ValueError as error:
        raise ValueError(f"column {column.path!r}: {error}") from None
    return claims


def _check_lists(claims: _Claims, stored: int) -> None:
    if claims.values > max(MOST_VALUES, VALUES_PER_BYTE * stored):
        raise ValueError(f"{stored} stored bytes claim to be lists of {claims.values} values")
    if claims.values * claims.entry > max(MOST_AT_ONCE, BYTES_PER_BYTE * stored):
        raise ValueError(f"{stored} stored bytes claim to be {claims.values} values of up to {claims.entry} bytes")


def _claims(file: IO[bytes], size: int, column: Column, chunk: Chunk) -> _Claims:
    at = chunk.dictionary_at if 0 < chunk.dictionary_at < chunk.data_at else chunk.data_at
    stop = at + chunk.stored
    if not 0 < at <= stop <= size:
        raise ValueError(f"its pages are said to lie at bytes {at} to {stop} of a file of {size}")
    claims = _Claims()
    while at < stop and claims.values < chunk.values:
        page = _header(file, at)
        at += page.size
        if not 0 <= page.stored <= size - at:
            raise ValueError(f"a page claims {page.stored} bytes at byte {at} of a file of {size}")
        if not 0 <= page.unpacked <= max(MOST_PAGE_BYTES, BYTES_PER_BYTE * page.stored):
            raise ValueError(f"a page of {page.stored} bytes claims to decompress to {page.unpacked}")
        if page.values < 0:
            raise ValueError(f"a page claims {page.values} values")
        if page.kind in ENCODING:
            _add_page(claims, page)
        elif page.kind == DICTIONARY_PAGE and column.type == BYTES:
            claims.entry = max(claims.entry, _longest_entry(file, at, page, CODECS.get(chunk.codec), chunk.codec == 0))
        at += page.stored
    return claims


def _add_page(claims: _Claims, page: _Header) -> None:
    claims.values += page.values
    claims.total += page.unpacked
    claims.largest = max(claims.largest, page.unpacked)
    if page.encoding == DELTA_BYTE_ARRAY:
        claims.entry = max(claims.entry, page.unpacked)


def _longest_entry(file: IO[bytes], at: int, page: _Header, codec: str | None, plain: bool) -> int:
    """Bytes of the longest text of a dictionary; those of all, where that is little or it cannot be read."""
    if page.unpacked <= SMALL_DICTIONARY or not (plain or codec):
        return page.unpacked
    file.seek(at)
    data = file.read(page.stored)
    try:
        if not plain:
            data = pa.decompress(data, page.unpacked, codec, asbytes=True)
    except (pa.ArrowException, OSError, ValueError):
        return page.unpacked
    place = longest = 0
    while place + 4 <= len(data):
        (length,) = struct.unpack_from("<I", data, place)
        longest = max(longest, length)
        place += 4 + length
    return min(longest, page.unpacked)


def _header(file: IO[bytes], at: int) -> _Header:
    count = FIRST_READ
    while True:
        file.seek(at)
        data = file.read(count)
        try:
            return _parsed(Compact(data))
        except (IndexError, RecursionError):
            if len(data) < count or count > LAST_READ:
                raise ValueError(f"the page header at byte {at} is damaged") from None
            count *= 8


def _parsed(reader: Compact) -> _Header:
    unpacked = stored = -1
    kind = values = encoding = 0
    for field, type_ in reader.fields():
        if field == 2:
            unpacked = reader.integer(type_)
        elif field == 3:
            stored = reader.integer(type_)
        elif field in (DATA_PAGE, DICTIONARY_PAGE, DATA_PAGE_V2):
            reader.check(type_, STRUCT)
            kind, values = field, 0
            for inner, inner_type in reader.fields():
                if inner == 1:
                    values = reader.integer(inner_type)
                elif inner == ENCODING.get(kind):
                    encoding = reader.integer(inner_type)
                else:
                    reader.skip(inner_type)
        else:
            reader.skip(type_)
    return _Header(reader.at, unpacked, stored, kind, values, encoding)
