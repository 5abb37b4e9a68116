"""The columns of a manifest: which it must have, may have and must not have, and of which types."""

from __future__ import annotations

from typing import Any

import pyarrow as pa

from jobs.errors import InputError

REQUIRED = ("id", "tokens", "voice_id")
FORBIDDEN = ("audio", "samples", "duration", "shard", "row", "sha256")  # names that the output uses
FAILURE_COLUMNS = {"error": pa.string(), "message": pa.string(), "manifest": pa.string(), "row": pa.int64()}


def check_columns(url: str, columns: pa.Schema) -> None:
    """Whether a file has the columns of a manifest of tokens.

    Raises:
        InputError: it lacks one, has one twice, under a name that the output uses, or of a wrong type.
    """
    names = columns.names
    doubled = sorted({name for name in names if names.count(name) > 1})
    if doubled:
        raise InputError(f"{url}: the column {doubled[0]!r} is there {names.count(doubled[0])} times")
    missing = [name for name in REQUIRED if name not in names]
    if missing:
        raise InputError(f"{url}: no column {' and no column '.join(map(repr, missing))}; it has {', '.join(names)}")
    forbidden = [name for name in FORBIDDEN if name in names]
    if forbidden:
        raise InputError(f"{url}: the column {forbidden[0]!r} has a name that the output uses; rename or drop it")
    for name, (fits, wanted) in _TYPES.items():
        if name in names and not fits(columns.field(name).type):
            raise InputError(f"{url}: the column {name!r} is {columns.field(name).type}, it must be {wanted}")


def without_failure_columns(schema: pa.Schema) -> pa.Schema:
    """The columns of a failures table without those that it adds to a manifest's; any other file's as they are."""
    present = {name: schema.field(name).type for name in FAILURE_COLUMNS if schema.get_field_index(name) >= 0}
    is_failures_table = len(present) == len(FAILURE_COLUMNS) and all(
        is_text(kind) if name != "row" else pa.types.is_integer(kind) for name, kind in present.items()
    )
    return pa.schema([f for f in schema if f.name not in FAILURE_COLUMNS]) if is_failures_table else schema


def is_text(kind: pa.DataType) -> bool:
    """Whether a column is of any kind of text."""
    if pa.types.is_dictionary(kind):
        return is_text(kind.value_type)
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)


def _is_token_list(kind: pa.DataType) -> bool:
    lists = (pa.ListType, pa.LargeListType, pa.FixedSizeListType, pa.ListViewType, pa.LargeListViewType)
    return isinstance(kind, lists) and pa.types.is_integer(kind.value_type)


def _is_number(kind: pa.DataType) -> bool:
    return pa.types.is_integer(kind) or pa.types.is_floating(kind)


_TYPES: dict[str, tuple[Any, str]] = {
    "id": (is_text, "text (string)"),
    "voice_id": (is_text, "text (string)"),
    "tokens": (_is_token_list, "a list of integers"),
    "seed": (_is_number, "integers"),
}
