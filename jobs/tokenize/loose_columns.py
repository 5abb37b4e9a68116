"""Columns of loose rows, such as JSON objects: each column gets the type that all of its values have."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pyarrow as pa

from jobs.errors import InputError

MOST_COLUMNS = 1_000  # a table has a cell for each of them in every row
MOST_DEPTH = 16  # of nested values; Parquet's readers bear a few more


def table_of(rows: Sequence[Mapping[str, Any]]) -> pa.Table:
    """Rows as a table; its columns come in the order in which the rows bring them up.

    A column whose values have no type in common holds texts: strings as they are, all else as JSON.

    Raises:
        InputError: rows of so many different keys that these are no columns.
    """
    names = _names(rows)
    return pa.table({legible(name): column_of([row.get(name) for row in rows]) for name in names})


def _names(rows: Iterable[Iterable[str]]) -> dict[str, None]:
    names: dict[str, None] = {}
    for row in rows:
        names.update(dict.fromkeys(row))
        if len(names) > MOST_COLUMNS:
            raise InputError(
                f"rows have more than {MOST_COLUMNS} different keys, the last one is {next(reversed(names))[:200]!r}"
            )
    return names


def column_of(values: Sequence[Any]) -> pa.Array:
    """One column."""
    try:
        array = pa.array(values)
    except (pa.ArrowException, UnicodeError, OverflowError, TypeError, ValueError, RecursionError):
        return _texts(values)
    if pa.types.is_null(array.type):
        return array.cast(pa.string())
    return array if _is_storable(array.type) else _texts(values)


def joined(tables: Sequence[pa.Table]) -> pa.Table:
    """Tables below each other; a column that one of them lacks is null there, and types are brought together."""
    names = _names(table.column_names for table in tables)
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
    if isinstance(value, str):
        return legible(value)
    try:
        return legible(json.dumps(value, ensure_ascii=False, default=str))
    except RecursionError:
        return "nested too deeply"


def legible(text: str) -> str:
    """A text that UTF-8 can hold: halves of characters, which JSON can name, are written out."""
    return text.encode("utf-8", "backslashreplace").decode()


def _is_storable(kind: pa.DataType, depth: int = 1) -> bool:
    """Whether Parquet has a place for it: it has none for objects without keys, nor for values nested without end."""
    if depth > MOST_DEPTH or (pa.types.is_struct(kind) and not kind.num_fields):
        return False
    return all(_is_storable(kind.field(place).type, depth + 1) for place in range(kind.num_fields))
