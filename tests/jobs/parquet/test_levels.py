"""The longest row of a column of lists, from its repetition levels."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from jobs.parquet.footer import Footer, footer_bytes
from jobs.parquet.levels import Rows
from jobs.parquet.pages import _longest_row
from tests.jobs.forged_parquet import parquet, varint

PACKED = 504  # levels of the longest packed run that a writer makes


def longest_row(lists: pa.Array, **options: Any) -> int:
    data = parquet(pa.table({"lists": lists}), **options)
    footer = Footer(footer_bytes(io.BytesIO(data)))
    (group,) = footer.groups()
    return _longest_row(io.BytesIO(data), len(data), footer.columns[0], group.chunks[0])


@pytest.mark.parametrize("depth", [1, 2, 3])
@pytest.mark.parametrize("version", ["1.0", "2.0"])
@pytest.mark.parametrize("long", [0, 30, 5_000, 100_000])
def test_the_longest_row_is_taken_for_a_shorter_or_a_far_longer_one(long: int, version: str, depth: int) -> None:
    sizes = np.random.default_rng(long).integers(0, 30, 2_000)
    sizes[700] = long
    lists: pa.Array = pa.array(np.zeros(sizes.sum(), np.int8))
    for _ in range(depth - 1):  # each of one
        lists = pa.ListArray.from_arrays(np.arange(len(lists) + 1, dtype=np.int32), lists)
    lists = pa.ListArray.from_arrays(np.append(0, np.cumsum(sizes)).astype(np.int32), lists)
    found = longest_row(lists, data_page_version=version, data_page_size=2_000, compression="zstd")
    assert sizes.max() <= found <= sizes.max() + 2 * PACKED


def test_a_row_that_goes_on_in_the_next_page_is_two() -> None:
    rows = Rows(width=1)
    rows.add(varint(1 << 1) + b"\0" + varint(9 << 1) + b"\1", 10)
    # Five ones packed, and three zeros that fill the byte and are no levels.
    rows.add(varint(1 << 1 | 1) + bytes([0b00011111]), 5)
    rows.add(varint(100 << 1) + b"\1", 100)
    assert rows.longest == 115


@pytest.mark.parametrize("levels", [b"", b"\x02", b"\x00\x00", b"\xff" * 9, varint(3 << 1 | 1)])
def test_damaged_levels_are_read_beyond_their_end(levels: bytes) -> None:
    with pytest.raises(ValueError, match="repetition levels are damaged"):
        Rows(width=1).add(levels, 5)
