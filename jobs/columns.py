"""Columns of loose rows, such as JSON objects: each column gets the type that all of its values have."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pyarrow as pa


def table_of(rows: Sequence[Mapping[str, Any]]) -> pa.Table:
    """Rows as a table; its columns come in the order in which the rows bring them up.

    A column whose values have no type in common holds texts: strings as they are, all else as JSON.
    """
    names = dict.fromkeys(name for row in rows for name in row)
    return pa.table({legible(name): column_of([row.get(name) for row in rows]) for name in names})


def column_of(values: Sequence[Any]) -> pa.Array:
    """One column."""
    try:
        array = pa.array(values)
    except (pa.ArrowException, UnicodeError, OverflowError, TypeError, ValueError):
        return _texts(values)
    if pa.types.is_null(array.type):
        return array.cast(pa.string())
    return array if _is_storable(array.type) else _texts(values)


def joined(tables: Sequence[pa.Table]) -> pa.Table:
    """Tables below each other; a column that one of them lacks is null there, and types are brought together."""
    names = dict.fromkeys(name for table in tables for name in table.column_names)
    fields = [_common([table.schema.field(name) for table in tables if name in table.column_names]) for name in names]
    return pa.concat_tables([_fitted(table, fields) for table in tables])


def _common(fields: Sequence[pa.Field]) -> pa.Field:
    try:
        (found,) = pa.unify_schemas([pa.schema([field]) for field in fields], promote_options="permissive")
    except (pa.ArrowException, ValueError):
        return pa.field(fields[0].name, pa.string())
    return found.with_nullable(True)


def _fitted(table: pa.Table, fields: Iterable[pa.Field]) -> pa.Table:
    columns = []
    for field in fields:
        if field.name not in table.column_names:
            columns.append(pa.nulls(table.num_rows, field.type))
            continue
        column = table[field.name]
        if column.type == field.type:
            columns.append(column)
        elif pa.types.is_string(field.type):
            columns.append(_texts(column.to_pylist()))
        else:
            columns.append(column.cast(field.type))
    return pa.table(columns, schema=pa.schema(list(fields)))


def _texts(values: Sequence[Any]) -> pa.Array:
    return pa.array([None if value is None else _text(value) for value in values], pa.string())


def _text(value: Any) -> str:
    return legible(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str))


def legible(text: str) -> str:
    """A text that UTF-8 can hold: halves of characters, which JSON can name, are written out."""
    return text.encode("utf-8", "backslashreplace").decode()


def _is_storable(kind: pa.DataType) -> bool:
    """Whether Parquet has a place for it: it has none for objects without keys."""
    if pa.types.is_struct(kind) and not kind.num_fields:
        return False
    return all(_is_storable(kind.field(place).type) for place in range(kind.num_fields))
