"""The footer of a Parquet file: its columns, and what its row groups claim to hold.

Read here and not by pyarrow, whose accessors of a column chunk's metadata let exceptions of the C++ library through
that end the process (seen with 26.0 and flipped bits in size statistics). Opening a file and decoding it is safe.

Numbers of fields are those of ``FileMetaData`` and the structs in it, in
https://github.com/apache/parquet-format/blob/2a8f022a49555fa7476dbb6804c9771397f8da12/src/main/thrift/parquet.thrift
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO

from jobs.parquet.thrift import I32, I64, STRUCT, Compact

MOST_BYTES = 1 << 28
MOST_COLUMNS = 100_000
REPEATED = 2  # a repetition type

Numbers = dict[int, int]  # by field


@dataclass(frozen=True, slots=True)
class Column:
    """A column of the file, or a part of a nested one.

    Attributes:
        path: its name; for a part of a nested column the names on the way to it, with dots.
        type: 6 is bytes of any length, 7 bytes of a fixed one, the others are numbers.
        width: of fixed bytes.
        repeated: whether it is in a list.
    """

    path: str
    type: int
    width: int
    repeated: bool


@dataclass(frozen=True, slots=True)
class Chunk:
    """A column's part of a row group.

    Attributes:
        stored: bytes.
        dictionary_at: 0 for none.
        least, most: the smallest and the largest value as stored; None where the file does not say.
    """

    codec: int
    values: int
    stored: int
    data_at: int
    dictionary_at: int
    least: bytes | None
    most: bytes | None


@dataclass(frozen=True, slots=True)
class Group:
    """A row group.

    Attributes:
        at: where it begins in the footer.
        bytes: of all columns, decompressed.
    """

    at: int
    rows: int
    bytes: int
    chunks: tuple[Chunk, ...]


class Footer:
    """A footer, of which one row group is in memory at a time.

    Attributes:
        rows: as it claims.
        columns: in the order of each group's chunks.

    Raises:
        ValueError: it is damaged.
    """

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.rows = 0
        self.columns: list[Column] = []
        self._groups_at: tuple[int, int] | None = None  # first byte and type
        try:
            self._read()
        except (IndexError, RecursionError, UnicodeDecodeError) as error:
            raise ValueError(f"the footer is damaged: {str(error) or type(error).__name__}") from None

    def groups(self) -> Iterator[Group]:
        """The row groups in order. ValueError as above."""
        if self._groups_at is None:
            return
        reader = Compact(self._data)
        reader.at, kind = self._groups_at
        try:
            for _ in range(reader.list(kind, STRUCT)):
                yield self._group(reader)
        except (IndexError, RecursionError) as error:
            raise ValueError(f"the footer is damaged: {str(error) or type(error).__name__}") from None

    def group(self, at: int) -> Group:
        """The row group that begins there, which has been read before."""
        reader = Compact(self._data)
        reader.at = at
        return self._group(reader)

    def _read(self) -> None:
        reader = Compact(self._data)
        seen: set[int] = set()
        for field, kind in reader.fields():
            if field in seen:
                raise ValueError(f"field {field} of the footer is there twice")
            seen.add(field)
            if field == 2:
                self.columns = _columns(reader, kind)
            elif field == 3:
                self.rows = reader.integer(kind)
            else:
                if field == 4:
                    self._groups_at = (reader.at, kind)
                reader.skip(kind)

    def _group(self, reader: Compact) -> Group:
        at = reader.at
        chunks: list[Chunk] = []
        numbers: Numbers = {}
        for field, kind in reader.fields():
            if field == 1:
                count = reader.list(kind, STRUCT)
                if count != len(self.columns):
                    raise ValueError(f"a row group has {count} columns, the schema {len(self.columns)}")
                chunks = [_chunk(reader) for _ in range(count)]
            elif field in (2, 3):
                numbers[field] = reader.integer(kind)
            else:
                reader.skip(kind)
        return Group(at=at, rows=numbers.get(3, 0), bytes=numbers.get(2, 0), chunks=tuple(chunks))


def footer_bytes(file: IO[bytes]) -> bytes:
    """The bytes of a file's footer. ValueError: it has none."""
    size = file.seek(0, 2)
    if size >= 12:
        file.seek(-8, 2)
        tail = file.read(8)
        length = int.from_bytes(tail[:4], "little")
        if tail[4:] == b"PAR1" and length <= min(size - 12, MOST_BYTES):
            file.seek(-8 - length, 2)
            return file.read(length)
    raise ValueError(f"{size} bytes without a footer: truncated, or no Parquet")


def _chunk(reader: Compact) -> Chunk:
    found = Chunk(0, 0, 0, 0, 0, None, None)
    for field, kind in reader.fields():
        if field == 3:
            reader.check(kind, STRUCT)
            found = _chunk_metadata(reader)
        else:
            reader.skip(kind)
    return found


def _chunk_metadata(reader: Compact) -> Chunk:
    numbers: Numbers = {}
    bounds: dict[int, bytes] = {}
    for field, kind in reader.fields():
        if kind in (I32, I64):
            numbers[field] = reader.integer(kind)
        elif field == 12 and kind == STRUCT:
            for bound, inner in reader.fields():
                if bound in (5, 6):
                    bounds[bound] = reader.binary(inner)
                else:
                    reader.skip(inner)
        else:
            reader.skip(kind)
    return Chunk(
        codec=numbers.get(4, 0),
        values=numbers.get(5, 0),
        stored=numbers.get(7, 0),
        data_at=numbers.get(9, 0),
        dictionary_at=numbers.get(11, 0),
        least=bounds.get(6),
        most=bounds.get(5),
    )


def _columns(reader: Compact, kind: int) -> list[Column]:
    """The leaves of a schema, which is a list of its elements, each before its children."""
    count = reader.list(kind, STRUCT)
    if count > MOST_COLUMNS:
        raise ValueError(f"a schema of {count} elements; {MOST_COLUMNS} is the most")
    columns: list[Column] = []
    above: list[tuple[str, bool, int]] = []  # path, whether in a list, and how many children are still to come
    for number in range(count):
        name, numbers = _element(reader)
        path, repeated = "", False
        if above:
            prefix, inside, left = above.pop()
            above.append((prefix, inside, left - 1))
            path, repeated = prefix + name, inside or numbers.get(3) == REPEATED
        elif number:
            raise ValueError("a schema with more elements than its root has children")
        children = numbers.get(5, 0)
        if children > 0 or not number:
            above.append((f"{path}." if number else "", repeated, children))
        else:
            columns.append(Column(path, numbers.get(1, -1), numbers.get(2, 0), repeated))
        while above and above[-1][2] <= 0:
            above.pop()
    if above:
        raise ValueError("a schema with fewer elements than children")
    return columns


def _element(reader: Compact) -> tuple[str, Numbers]:
    name, numbers = "", {}
    for field, kind in reader.fields():
        if field == 4:
            name = reader.binary(kind).decode()
        elif kind in (I32, I64):
            numbers[field] = reader.integer(kind)
        else:
            reader.skip(kind)
    return name, numbers
