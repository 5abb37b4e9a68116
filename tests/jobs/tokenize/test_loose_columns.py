"""Columns of loose rows: whatever JSON holds can be stored, and nothing of it changes where it need not."""

from __future__ import annotations

import io
import json
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jobs.errors import InputError
from jobs.tokenize.loose_columns import column_of, joined, legible, table_of

PAIR = pa.struct([("a", pa.int64()), ("b", pa.string())])


@pytest.mark.parametrize(
    ("values", "kind", "stored"),
    [
        ([1, None, 2], pa.int64(), None),
        ([1, 2.5], pa.float64(), [1.0, 2.5]),
        (["a", None], pa.string(), None),
        ([None, None], pa.string(), None),
        ([True, None], pa.bool_(), None),
        ([[1], []], pa.list_(pa.int64()), None),
        ([{"a": 1}, {"b": "x"}], PAIR, [{"a": 1, "b": None}, {"a": None, "b": "x"}]),
        ([1, "x", {"é": [None]}], pa.string(), ["1", "x", '{"é": [null]}']),
        ([2**70], pa.string(), [str(2**70)]),
        ([{}, None], pa.string(), ["{}", None]),
        ([[{}]], pa.string(), ["[{}]"]),
        (["\ud800"], pa.string(), ["\\ud800"]),
        ([json.loads("[" * 40 + "]" * 40)], pa.string(), ["[" * 40 + "]" * 40]),
        ([True, "x"], pa.string(), ["true", "x"]),
    ],
)  # fmt: skip
def test_a_column_cannot_be_stored_or_changes(values: list[Any], kind: pa.DataType, stored: list[Any] | None) -> None:
    column = column_of(values)
    assert column.type == kind
    assert column.to_pylist() == (values if stored is None else stored)
    pq.write_table(pa.table({"x": column}), io.BytesIO())


@pytest.mark.parametrize("depth", [100, 400, 900])
def test_values_nested_without_end_end_the_process(depth: int) -> None:
    for text in ("[" * depth + "1" + "]" * depth, '{"a":' * depth + "1" + "}" * depth):
        table = table_of([{"x": json.loads(text)}])
        assert table.schema.field("x").type == pa.string()


def test_rows_whose_keys_are_values_take_all_memory() -> None:
    with pytest.raises(InputError, match="more than 1000 different keys, the last one is 'k1000'"):
        table_of([{f"k{row}": row} for row in range(1_001)])
    halves = [table_of([{f"{side}{row}": row for row in range(600)}]) for side in "ab"]
    with pytest.raises(InputError, match="more than 1000 different keys"):
        joined(halves)


def test_rows_that_lack_a_key_shift_the_others() -> None:
    table = table_of([{"a": 1}, {"b": 2, "\udc80": 3}, {"a": 3, "b": 4}])
    assert table.to_pydict() == {"a": [1, None, 3], "b": [None, 2, 4], "\\udc80": [None, 3, None]}


def test_tables_that_disagree_cannot_be_joined() -> None:
    tables = [
        pa.table({"n": [1], "x": ["a"], "only": [True]}),
        pa.table({"x": pa.nulls(1, pa.string()), "n": [2.5]}),
        pa.table({"n": [3], "x": [{"k": 1}]}),
    ]
    assert joined(tables).to_pydict() == {
        "n": [1.0, 2.5, 3.0],
        "x": ["a", None, '{"k": 1}'],
        "only": [True, None, None],
    }


TEXT = st.text(st.characters(exclude_categories=()), max_size=4)  # halves of characters, too
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)
ROW = st.dictionaries(TEXT, JSON, max_size=4).map(lambda row: {"id": "x", **row})


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(ROW, min_size=1), min_size=1, max_size=3))
def test_an_object_of_json_cannot_be_stored(parts: list[list[dict[str, Any]]]) -> None:
    table = joined([table_of(rows) for rows in parts])
    rows = [row for part in parts for row in part]
    file = io.BytesIO()
    pq.write_table(table, file)
    assert pq.ParquetFile(file).read().num_rows == table.num_rows == len(rows)
    for name in {legible(name): name for row in rows for name in row}.values():
        given = [row.get(name) for row in rows]
        if all(value is None or isinstance(value, str) for value in given):
            assert table[legible(name)].to_pylist() == [None if value is None else legible(value) for value in given]
