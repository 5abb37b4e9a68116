"""Whether two tables hold the same, value by value.

Arrow says of a table with NaN in it that it does not equal itself, and of equal values in dictionaries that they
differ where their dictionaries do, which depend on the rows that were written together.
"""

from __future__ import annotations

from collections.abc import Callable

import pyarrow as pa

Change = Callable[[pa.DataType], pa.DataType]


def same(left: pa.Table, right: pa.Table) -> bool:
    """Whether two tables of one schema hold the same rows: NaN is NaN, and 0.0 is not -0.0."""
    if left.num_rows != right.num_rows:
        return False
    pairs = zip(left.columns, right.columns, strict=True)
    return all(one.equals(other) or _bits(one).equals(_bits(other)) for one, other in pairs)


def _bits(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """With values in place of dictionaries, and whole numbers of the same bits in place of floats, at any depth."""
    plain = column.cast(_without_dictionaries(column.type))
    kind = _without_floats(plain.type)
    return pa.chunked_array([chunk.view(kind) for chunk in plain.chunks], kind)


def _without_dictionaries(kind: pa.DataType) -> pa.DataType:
    return kind.value_type if pa.types.is_dictionary(kind) else _inside(kind, _without_dictionaries)


def _without_floats(kind: pa.DataType) -> pa.DataType:
    if isinstance(kind, pa.BaseExtensionType):
        return _without_floats(kind.storage_type)
    if pa.types.is_floating(kind):
        return {16: pa.int16(), 32: pa.int32(), 64: pa.int64()}[kind.bit_width]
    return _inside(kind, _without_floats)


def _inside(kind: pa.DataType, change: Change) -> pa.DataType:
    """The type with those that it is made of changed."""
    if pa.types.is_struct(kind):
        return pa.struct([field.with_type(change(field.type)) for field in kind])
    if pa.types.is_map(kind):
        return pa.map_(kind.key_field, kind.item_field.with_type(change(kind.item_type)), kind.keys_sorted)
    if pa.types.is_list(kind):
        return pa.list_(_item(kind, change))
    if pa.types.is_large_list(kind):
        return pa.large_list(_item(kind, change))
    if pa.types.is_fixed_size_list(kind):
        return pa.list_(_item(kind, change), kind.list_size)
    return kind


def _item(kind: pa.DataType, change: Change) -> pa.Field:
    field: pa.Field = kind.value_field
    return field.with_type(change(kind.value_type))
