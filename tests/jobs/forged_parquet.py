"""Parquet files that lie: footers and page headers taken apart, changed and put together again.

Both are Thrift structs in the compact protocol. Here a struct is a dictionary from field number to ``(type, value)``,
a list ``(type of its items, items)``, so that what is written back is what was read, byte for byte, but for the lie.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

TRUE, FALSE, BYTE, I16, I32, I64, DOUBLE, BINARY, LIST, SET, MAP, STRUCT = range(1, 13)
INTEGERS = (I16, I32, I64)

Struct = dict[int, tuple[int, Any]]

# Field numbers of the format's own definition, parquet.thrift.
SCHEMA, NUM_ROWS, ROW_GROUPS, KEY_VALUES = 2, 3, 4, 5  # of FileMetaData
TYPE_LENGTH, NAME, NUM_CHILDREN = 2, 4, 5  # of SchemaElement
COLUMNS, GROUP_ROWS = 1, 3  # of RowGroup
CHUNK = 3  # of ColumnChunk: its ColumnMetaData
CODEC, NUM_VALUES, UNCOMPRESSED, COMPRESSED, DATA_OFFSET, DICTIONARY_OFFSET = 4, 5, 6, 7, 9, 11  # of ColumnMetaData
HADOOP_LZ4 = 5  # a codec
PAGE_UNCOMPRESSED, PAGE_COMPRESSED, DATA_PAGE, DICTIONARY_PAGE = 2, 3, 5, 7  # of PageHeader
PAGE_VALUES = 1  # of DataPageHeader and DictionaryPageHeader


class Reader:
    """Thrift's compact protocol, from bytes."""

    def __init__(self, data: bytes, at: int = 0) -> None:
        self.data, self.at = data, at

    def struct(self) -> Struct:
        found: Struct = {}
        field = 0
        while head := self._byte():
            kind = head & 15
            field = field + (head >> 4) if head >> 4 else _unzigzag(self._varint())
            found[field] = (kind, self._value(kind))
        return found

    def _value(self, kind: int) -> Any:
        if kind in (TRUE, FALSE):
            return kind == TRUE
        if kind == BYTE:
            return self._byte()
        if kind in INTEGERS:
            return _unzigzag(self._varint())
        if kind == BINARY:
            return self._bytes(self._varint())
        if kind == DOUBLE:
            return self._bytes(8)
        if kind in (LIST, SET):
            head = self._byte()
            size = head >> 4 if head >> 4 < 15 else self._varint()
            return (head & 15, [self._item(head & 15) for _ in range(size)])
        assert kind == STRUCT, kind
        return self.struct()

    def _item(self, kind: int) -> Any:
        return self._byte() == TRUE if kind in (TRUE, FALSE) else self._value(kind)

    def _bytes(self, count: int) -> bytes:
        self.at += count
        return self.data[self.at - count : self.at]

    def _byte(self) -> int:
        return self._bytes(1)[0]

    def _varint(self) -> int:
        value = shift = 0
        while True:
            byte = self._byte()
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value


def written(struct: Struct) -> bytes:
    """The bytes of a struct."""
    out = bytearray()
    last = 0
    for field, (kind, value) in struct.items():
        tag = (TRUE if value else FALSE) if kind in (TRUE, FALSE) else kind
        step = field - last
        out += bytes([step << 4 | tag]) if 0 < step < 16 else bytes([tag]) + varint(_zigzag(field))
        last = field
        if kind not in (TRUE, FALSE):
            out += _value_bytes(kind, value)
    return bytes(out) + b"\0"


def _value_bytes(kind: int, value: Any) -> bytes:
    if kind in (TRUE, FALSE):
        return bytes([TRUE if value else FALSE])
    if kind == BYTE:
        return bytes([value])
    if kind in INTEGERS:
        return varint(_zigzag(value))
    if kind == BINARY:
        return varint(len(value)) + value
    if kind == DOUBLE:
        return bytes(value)
    if kind in (LIST, SET):
        inner, items = value
        head = bytes([len(items) << 4 | inner]) if len(items) < 15 else bytes([0xF0 | inner]) + varint(len(items))
        return head + b"".join(_value_bytes(inner, item) for item in items)
    return written(value)


def varint(value: int) -> bytes:
    """An unsigned number as both Thrift and the run-length encoding have it."""
    out = bytearray()
    while value >= 128:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


def _zigzag(value: int) -> int:
    return value << 1 if value >= 0 else (-value << 1) - 1


def _unzigzag(value: int) -> int:
    return value >> 1 if not value & 1 else -(value + 1 >> 1)


def footer_of(data: bytes) -> Struct:
    """The footer of a file."""
    length = int.from_bytes(data[-8:-4], "little")
    return Reader(data[-8 - length : -8]).struct()


def with_footer(data: bytes, footer: Struct) -> bytes:
    """The file's pages under another footer."""
    return closed(data[: -8 - int.from_bytes(data[-8:-4], "little")], written(footer))


def closed(body: bytes, footer: bytes) -> bytes:
    """A file of these pages and this footer."""
    return body + footer + len(footer).to_bytes(4, "little") + b"PAR1"


def forged(data: bytes, change: Callable[[Struct], object]) -> bytes:
    """The file with its footer changed in place."""
    footer = footer_of(data)
    change(footer)
    return with_footer(data, footer)


def put(struct: Struct, field: int, value: Any) -> None:
    """Changes a field of a struct, which has it."""
    struct[field] = (struct[field][0], value)


def chunks(footer: Struct) -> Iterator[Struct]:
    """The ColumnMetaData of every column chunk."""
    for group in footer[ROW_GROUPS][1][1]:
        for chunk in group[COLUMNS][1][1]:
            yield chunk[CHUNK][1]


@dataclass
class Page:
    """One page: its header, and its bytes as stored."""

    header: Struct
    body: bytes


def pages_of(data: bytes, chunk: Struct) -> list[Page]:
    """The pages of a column chunk."""
    at = start_of(chunk)
    end = at + chunk[COMPRESSED][1]
    pages = []
    while at < end:
        reader = Reader(data, at)
        header = reader.struct()
        at = reader.at + header[PAGE_COMPRESSED][1]
        pages.append(Page(header, data[reader.at : at]))
    return pages


def start_of(chunk: Struct) -> int:
    """Where a column chunk begins in its file."""
    return min(chunk[field][1] for field in (DICTIONARY_OFFSET, DATA_OFFSET) if field in chunk)


def rebuilt(data: bytes, change: Callable[[int, list[Page]], list[Page]]) -> bytes:
    """The file with other pages in its column chunks, and a footer that knows where they are."""
    footer = footer_of(data)
    body = bytearray(b"PAR1")
    for number, chunk in enumerate(chunks(footer)):
        pages = change(number, pages_of(data, chunk))
        began = len(body)
        for page in pages:
            if DICTIONARY_PAGE not in page.header:
                put(chunk, DATA_OFFSET, len(body)) if DATA_OFFSET not in chunk or page is _first_data(pages) else None
            elif DICTIONARY_OFFSET in chunk:
                put(chunk, DICTIONARY_OFFSET, len(body))
            body += written(page.header) + page.body
        put(chunk, COMPRESSED, len(body) - began)
    return closed(bytes(body), written(footer))


def _first_data(pages: list[Page]) -> Page | None:
    return next((page for page in pages if DICTIONARY_PAGE not in page.header), None)


def parquet(table: pa.Table, **options: Any) -> bytes:
    """A table as a Parquet file."""
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, **options)
    return sink.getvalue().to_pybytes()
