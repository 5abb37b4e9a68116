"""What the pages of a Parquet file claim to hold, looked at before anything of them is decoded.

A reader allocates what a page says of itself, and a few stored bytes may speak for billions of values: a run of equal
levels, a dictionary with one long entry, zeros that were compressed. So the headers of all pages are read first, which
costs some dozens of bytes each; what cannot be true of speech is refused, and how many rows may be decoded at a time
follows from the rest. The footer is not asked how large pages are, since nothing makes it agree with them.

Columns of equal values, or of texts with much in common, are ordinary, and take few bytes too. So of a dictionary the
longest text is looked for, and of lists that claim far more than they store the longest row: only what a single row
would take is a reason to refuse it.

Numbers of fields are those of ``PageHeader``, in the file that ``footer`` names.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO

import pyarrow as pa
import pyarrow.parquet as pq

from jobs.parquet.footer import Chunk, Column, Group
from jobs.parquet.levels import Rows
from jobs.parquet.thrift import STRUCT, Compact

MOST_AT_ONCE = 512 << 20  # bytes that a batch of rows may take, lists of numbers aside
MOST_ROWS = 8_192  # of a batch
MOST_OF_ROW = 64 << 20  # bytes that no stored ones speak for
MOST_OF_LIST = 1 << 30  # bytes of the texts that a row has in a column of lists
MOST_VALUES = 1 << 24  # of a row in a column of lists; of all rows, where more than ...
VALUES_PER_BYTE = 128  # ... so many for each stored byte are looked at one by one
MOST_PAGE_BYTES = 64 << 20  # of a page, decompressed; beyond that ...
BYTES_PER_BYTE = 128  # ... so many for each stored byte
NUMBER_BYTES = 16  # the widest, a decimal, has twice as many
FIRST_READ, LAST_READ = 256, 1 << 22  # bytes of a page's header, which may hold a minimum and a maximum

BYTES, FIXED_BYTES = 6, 7  # types of columns
CODECS = {1: "snappy", 2: "gzip", 4: "brotli", 6: "zstd", 7: "lz4_raw"}  # those that pyarrow decompresses by themselves
PLAIN, HADOOP_LZ4 = 0, 5  # two other codecs
DATA_PAGE, DICTIONARY_PAGE, DATA_PAGE_V2 = 5, 7, 8
ENCODING = {DATA_PAGE: 2, DATA_PAGE_V2: 4}  # its field
REPETITION_BYTES = 6  # a field of pages of the second version
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
    levels: int = 0  # bytes of its repetition levels, in pages of the second version


@dataclass(slots=True)
class _Claims:
    """What the pages of one column chunk claim.

    Attributes:
        values: in all data pages, nulls included.
        total, largest: bytes of all data pages and of the largest one, decompressed.
        entry: bytes of the longest value that few stored bytes may repeat.
        guess: the same, of pages that hold such a value at most; theirs are mostly far smaller.
        row: values of the longest row; 1 outside of lists.

    Of numbers only ``values`` and ``row`` matter, and only in lists: they take no more than 16 bytes each.
    """

    values: int = 0
    total: int = 0
    largest: int = 0
    entry: int = 0
    guess: int = 0
    row: int = 1

    def of_rows(self, rows: int) -> int:
        """Bytes that so many rows take at most."""
        return min(self.total, rows * self.largest) + rows * self.row * max(self.entry, self.guess)


def rows_at_once(file: IO[bytes], columns: list[Column], group: Group, fixed: int = 0) -> int:
    """How many rows of a row group may be decoded at a time.

    Args:
        file: seekable, at any position.
        columns: those of ``group.chunks``.
        fixed: bytes that each row takes in lists of fixed length, even where it is null.

    Raises:
        ValueError: its pages are damaged, or claim what their bytes cannot hold; names the column.
    """
    size = file.seek(0, 2)
    claims = [_column(file, size, *each) for each in zip(columns, group.chunks, strict=True)]
    fixed += sum(column.width for column in columns if column.type == FIXED_BYTES and not column.repeated)
    if fixed > MOST_OF_ROW:
        raise ValueError(f"{group.rows} rows claim to take {fixed} bytes each, whatever they hold")
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


def _column(file: IO[bytes], size: int, column: Column, chunk: Chunk) -> _Claims:
    try:
        claims = _claims(file, size, column, chunk)
        if column.type != BYTES:
            claims.total = claims.largest = claims.entry = claims.guess = 0
        if column.repeated:
            _look_at_lists(claims, file, size, column, chunk)
    except ValueError as error:
        raise ValueError(f"column {column.path!r}: {error}") from None
    return claims


def _look_at_lists(claims: _Claims, file: IO[bytes], size: int, column: Column, chunk: Chunk) -> None:
    """Lists whose stored bytes vouch for them need no more; of others the longest row is what counts."""
    if column.type == FIXED_BYTES:
        claims.entry = column.width  # of a null, too
    longest = max(claims.entry, claims.guess)
    if claims.values <= max(MOST_VALUES, VALUES_PER_BYTE * chunk.stored) and claims.values * longest <= MOST_AT_ONCE:
        claims.entry = claims.guess = 0
        return
    claims.row = _longest_row(file, size, column, chunk)
    if claims.row > MOST_VALUES:
        raise ValueError(f"{chunk.stored} stored bytes claim to be lists of up to {claims.row} values")
    if claims.row * claims.entry > MOST_OF_LIST:
        raise ValueError(f"a list of {claims.row} values of up to {claims.entry} bytes each is claimed")
    claims.entry = max(claims.entry, NUMBER_BYTES)


def _claims(file: IO[bytes], size: int, column: Column, chunk: Chunk) -> _Claims:
    claims = _Claims()
    for at, page in _pages(file, size, chunk):
        if page.kind in ENCODING:
            claims.values += page.values
            claims.total += page.unpacked
            claims.largest = max(claims.largest, page.unpacked)
            if page.encoding == DELTA_BYTE_ARRAY:
                claims.guess = max(claims.guess, page.unpacked)
        elif page.kind == DICTIONARY_PAGE and column.type == BYTES:
            claims.entry = max(claims.entry, _longest_entry(_body(file, at, page, chunk.codec)))
    return claims


def _pages(file: IO[bytes], size: int, chunk: Chunk) -> Iterator[tuple[int, _Header]]:
    """Where each page's bytes begin, and its header, of pages that may be decompressed one by one."""
    at = chunk.dictionary_at if 0 < chunk.dictionary_at < chunk.data_at else chunk.data_at
    stop = at + chunk.stored
    if not 0 < at <= stop <= size:
        raise ValueError(f"its pages are said to lie at bytes {at} to {stop} of a file of {size}")
    values = 0
    while at < stop and values < chunk.values:
        page = _header(file, at)
        at += page.size
        if not 0 <= page.stored <= size - at:
            raise ValueError(f"a page claims {page.stored} bytes at byte {at} of a file of {size}")
        if not 0 <= page.unpacked <= max(MOST_PAGE_BYTES, BYTES_PER_BYTE * page.stored):
            raise ValueError(f"a page of {page.stored} bytes claims to decompress to {page.unpacked}")
        if page.values < 0:
            raise ValueError(f"a page claims {page.values} values")
        yield at, page
        values += page.values if page.kind in ENCODING else 0
        at += page.stored


def _longest_row(file: IO[bytes], size: int, column: Column, chunk: Chunk) -> int:
    """Values of the longest row of a column of lists, or somewhat more."""
    rows = Rows(_level_bits(file, column))
    for at, page in _pages(file, size, chunk):
        if page.kind == DATA_PAGE_V2:
            file.seek(at)
            rows.add(file.read(max(0, min(page.levels, page.stored))), page.values)
        elif page.kind == DATA_PAGE:
            body = _body(file, at, page, chunk.codec)
            rows.add(body[4 : 4 + int.from_bytes(body[:4], "little")], page.values)
    return rows.longest


def _level_bits(file: IO[bytes], column: Column) -> int:
    file.seek(0)
    schema = pq.ParquetFile(file).schema
    leaves = (schema.column(number) for number in range(len(schema)))
    return max([1, *(leaf.max_repetition_level.bit_length() for leaf in leaves if leaf.path == column.path)])


def _longest_entry(dictionary: bytes) -> int:
    """Bytes of the longest text of a dictionary."""
    place = longest = 0
    while place + 4 <= len(dictionary):
        (length,) = struct.unpack_from("<I", dictionary, place)
        longest = max(longest, length)
        place += 4 + length
    return min(longest, len(dictionary))


def _body(file: IO[bytes], at: int, page: _Header, codec: int) -> bytes:
    """A page's bytes, decompressed."""
    file.seek(at)
    data = file.read(page.stored)
    try:
        if codec == PLAIN:
            return data
        if codec == HADOOP_LZ4:
            return _hadoop_lz4(data, page.unpacked)
        return bytes(pa.decompress(data, page.unpacked, CODECS[codec], asbytes=True))
    except (KeyError, pa.ArrowException, OSError, ValueError):
        raise ValueError(f"the page at byte {at} cannot be decompressed (codec {codec})") from None


def _hadoop_lz4(data: bytes, unpacked: int) -> bytes:
    """Blocks of LZ4 as Hadoop frames them, each after its two sizes; some writers leave the frame away."""
    blocks: list[bytes] = []
    at, left = 0, unpacked
    try:
        while left:
            size, stored = struct.unpack_from(">II", data, at)
            if size > left or not size:
                raise ValueError(f"a block of {size} bytes where {left} are left")
            blocks.append(pa.decompress(data[at + 8 : at + 8 + stored], size, "lz4_raw", asbytes=True))
            at, left = at + 8 + stored, left - size
        return b"".join(blocks)
    except (pa.ArrowException, OSError, ValueError, struct.error):
        return bytes(pa.decompress(data, unpacked, "lz4_raw", asbytes=True))


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
    kind = values = encoding = levels = 0
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
                elif inner == REPETITION_BYTES and kind == DATA_PAGE_V2:
                    levels = reader.integer(inner_type)
                else:
                    reader.skip(inner_type)
        else:
            reader.skip(type_)
    return _Header(reader.at, unpacked, stored, kind, values, encoding, levels)
