"""Thrift's compact protocol, as much of it as the footers and page headers of Parquet files need, for reading only.

A value is read where it stands: whoever reads decides field by field what to keep, so that a hostile list of a million
entries costs no memory. https://github.com/apache/thrift/blob/master/doc/specs/thrift-compact-protocol.md
"""

from __future__ import annotations

from collections.abc import Iterator

TRUE, FALSE, BYTE, I16, I32, I64, DOUBLE, BINARY, LIST, SET, MAP, STRUCT = range(1, 13)
TRUTHS, INTEGERS, LISTS = (TRUE, FALSE), (I16, I32, I64), (LIST, SET)
MOST_BITS = 64


class Compact:
    """A place in bytes, from which values are read one after the other.

    Attributes:
        at: the next byte.

    Raises, all methods:
        IndexError: the bytes end too early.
        ValueError: they cannot be what they should be.
    """

    def __init__(self, data: bytes) -> None:
        self._data, self.at = data, 0

    def fields(self) -> Iterator[tuple[int, int]]:
        """Number and type of each field of a struct; its value has to be read or skipped before the next."""
        field = 0
        data = self._data
        while head := data[self.at]:
            self.at += 1
            step = head >> 4
            field = field + step if step else self.integer(I16)
            yield field, head & 15
        self.at += 1

    def integer(self, kind: int) -> int:
        """A signed number."""
        if kind not in INTEGERS:
            raise ValueError(f"a field of type {kind} where a number belongs")
        value = self._varint()
        return value >> 1 if not value & 1 else -((value + 1) >> 1)

    def binary(self, kind: int) -> bytes:
        """Bytes, or the UTF-8 of a text."""
        if kind != BINARY:
            raise ValueError(f"a field of type {kind} where a text belongs")
        length = self._varint()
        self._pass(length)
        return self._data[self.at - length : self.at]

    def list(self, kind: int, inner: int) -> int:
        """How many values of a type follow."""
        if kind not in LISTS:
            raise ValueError(f"a field of type {kind} where a list belongs")
        head = self.byte()
        size = head >> 4 if head >> 4 < 15 else self._varint()
        if size and head & 15 != inner:
            raise ValueError(f"a list of type {head & 15} where one of type {inner} belongs")
        return size

    def check(self, kind: int, wanted: int) -> None:
        """ValueError: a field is not of the wanted type."""
        if kind != wanted:
            raise ValueError(f"a field of type {kind} where one of type {wanted} belongs")

    def skip(self, kind: int) -> None:
        """A value of any type, in a field."""
        if kind in INTEGERS:
            self._varint()
        elif kind == BINARY:
            self._pass(self._varint())
        elif kind == STRUCT:
            while head := self.byte():
                if not head >> 4:
                    self._varint()  # the number of a field that does not follow from the one before
                self.skip(head & 15)
        elif kind in LISTS:
            head = self.byte()
            size = head >> 4 if head >> 4 < 15 else self._varint()
            for _ in range(size):
                self._pass(1) if head & 15 in TRUTHS else self.skip(head & 15)
        elif kind in (BYTE, DOUBLE):
            self._pass(1 if kind == BYTE else 8)
        elif kind not in TRUTHS:  # these are in the type itself
            raise ValueError(f"a field of type {kind}, which Parquet has not")

    def byte(self) -> int:
        """One byte."""
        value = self._data[self.at]
        self.at += 1
        return value

    def _varint(self) -> int:
        data, at = self._data, self.at
        value, shift = 0, 0
        while (byte := data[at]) >= 128:
            value |= (byte & 127) << shift
            at, shift = at + 1, shift + 7
            if shift > MOST_BITS:
                raise ValueError(f"a number of more than {MOST_BITS} bits")
        self.at = at + 1
        return value | byte << shift

    def _pass(self, count: int) -> None:
        self.at += count
        if self.at > len(self._data):
            raise IndexError("the bytes end within a value")
