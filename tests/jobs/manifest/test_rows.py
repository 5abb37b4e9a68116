"""The rows of a manifest: each good as it is, or a failure with its reason."""

from __future__ import annotations

import hashlib
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jobs.ledger.tables import failures_schema, failures_table
from jobs.manifest.manifest import Manifest, Span
from jobs.manifest.rows import check_rows
from jobs.manifest.seeds import derived_seed
from tests.jobs.manifest.test_manifest import table_of, write


def checked(table: pa.Table, max_tokens: int = 1_500) -> tuple[dict[str, list[int]], dict[int, tuple[str, str]]]:
    rows, failures = check_rows(table, job_seed=0, max_tokens=max_tokens)
    return {row.id: row.tokens.tolist() for row in rows}, {f.position: (f.error, f.message) for f in failures}


TEXTS = [
    pa.string(),
    pa.large_string(),
    pa.string_view(),
    pa.dictionary(pa.int8(), pa.string()),
    pa.dictionary(pa.int32(), pa.large_string()),
]
LISTS = [
    *(pa.list_(kind) for kind in (pa.int16(), pa.uint16(), pa.int32(), pa.uint32(), pa.int64(), pa.uint64())),
    *(pa.large_list(pa.int32()), pa.list_view(pa.int32()), pa.large_list_view(pa.uint64())),
]


@pytest.mark.parametrize("kind", TEXTS, ids=str)
def test_ids_of_every_kind_of_text(tmp_path: Path, kind: pa.DataType) -> None:
    ids = pa.array(["a", "b.c/d", None, "é\u0000\n", "", "a"]).cast(kind)
    table = table_of(["x"] * 6).set_column(0, "id", ids).set_column(2, "voice_id", pa.array(["v"] * 6).cast(kind))
    manifest = Manifest.scan(write(tmp_path / "m.parquet", table, row_group_size=2))
    good, bad = checked(manifest.read([Span(0, 0, 6)]))
    assert list(good) == ["a", "b.c/d", "é\u0000\n", ""]
    assert {position: code for position, (code, _) in bad.items()} == {2: "null_id", 5: "duplicate_id"}


@pytest.mark.parametrize("kind", LISTS, ids=str)
def test_tokens_of_every_kind_of_list(tmp_path: Path, kind: pa.DataType) -> None:
    lists = [[0, 6560], [6561, 5, 6562], None, [], [6561, 6562], [7, 6563], [8, None, 9], [1] * 7]
    table = table_of([f"u{i}" for i in range(8)]).set_column(1, "tokens", pa.array(lists, kind))
    manifest = Manifest.scan(write(tmp_path / "m.parquet", table, row_group_size=3))
    good, bad = checked(manifest.read([Span(0, 0, 8)]), max_tokens=6)
    assert good == {"u0": [0, 6560], "u1": [5]}
    assert bad == {
        2: ("null_tokens", "tokens is null"),
        3: ("empty_tokens", "no tokens"),
        4: ("empty_tokens", "no tokens but start and stop"),
        5: ("token_out_of_range", "token 6563 at place 1 is not one of 0 to 6560, nor start or stop"),
        6: ("token_out_of_range", "token null at place 1 is not one of 0 to 6560, nor start or stop"),
        7: ("too_long", "7 tokens, more than max_tokens, 6"),
    }


def test_tokens_of_fixed_length_and_narrow_integers() -> None:
    fixed = pa.array([[1, 2], None, [3, 6561]], pa.list_(pa.int32(), 2))
    good, bad = checked(table_of(["a", "b", "c"]).set_column(1, "tokens", fixed))
    assert good == {"a": [1, 2], "c": [3]}
    assert bad[1][0] == "null_tokens"
    for kind in (pa.int8(), pa.uint8()):
        narrow = pa.array([[1, 127], [0]], pa.list_(kind))
        assert checked(table_of(["a", "b"]).set_column(1, "tokens", narrow))[0] == {"a": [1, 127], "b": [0]}


@pytest.mark.parametrize("value", [-1, 6563, 2**31, -(2**63), 2**63 - 1, 2**64 - 1])
def test_a_token_out_of_range_is_shown_with_its_place(value: int) -> None:
    kind = pa.uint64() if value >= 2**63 else pa.int64()
    tokens = pa.array([[5, 6561, value], [1]], pa.list_(kind))
    good, bad = checked(table_of(["a", "b"]).set_column(1, "tokens", tokens))
    assert bad == {0: ("token_out_of_range", f"token {value} at place 2 is not one of 0 to 6560, nor start or stop")}
    assert list(good) == ["b"]


def test_max_tokens_counts_neither_start_nor_stop() -> None:
    good, bad = checked(table_of(["a", "b"], [[6561, 1, 2, 6562], [1, 2, 3]]), max_tokens=2)
    assert list(good) == ["a"]
    assert bad[1][0] == "too_long"


def test_texts_that_are_no_utf8_fail_their_row_alone() -> None:
    offsets = pa.py_buffer(np.array([0, 1, 3, 4], np.int32))
    broken = pa.Array.from_buffers(pa.string(), 3, [None, offsets, pa.py_buffer(b"a\xff\xfeb")])
    good, bad = checked(table_of(["x", "y", "z"]).set_column(0, "id", broken))
    assert list(good) == ["a", "b"]
    assert bad[1][0] == "bad_id"
    good, bad = checked(table_of(["x", "y", "z"]).set_column(2, "voice_id", broken))
    assert list(good) == ["x", "z"]
    assert bad[1][0] == "bad_voice_id"


def test_a_row_without_a_seed_gets_one_of_its_id_and_the_jobs_seed() -> None:
    rows, _ = check_rows(table_of(["a", "é"]), job_seed=5, max_tokens=10)
    assert rows[0].seed == int.from_bytes(hashlib.sha256(b"5:a").digest()[:8], "big")
    assert rows[1].seed == int.from_bytes(hashlib.sha256("5:é".encode()).digest()[:8], "big")
    assert derived_seed(5, "a") != derived_seed(6, "a")


@pytest.mark.parametrize(
    ("seeds", "wanted"),
    [
        (pa.array([0, -(2**63), None]), [0, -(2**63), derived_seed(0, "c")]),
        (pa.array([2**64 - 1, 1, None], pa.uint64()), [2**64 - 1, 1, derived_seed(0, "c")]),
        (pa.array([7, None, -3], pa.int8()), [7, derived_seed(0, "b"), -3]),
        (pa.array([7.0, float("nan"), -3.0]), [7, derived_seed(0, "b"), -3]),
    ],
)
def test_seeds_of_every_kind_of_number(seeds: pa.Array, wanted: list[int]) -> None:
    rows, failures = check_rows(table_of(["a", "b", "c"], seed=seeds), job_seed=0, max_tokens=10)
    assert [row.seed for row in rows] == wanted
    assert not failures


def test_a_seed_that_lost_its_value_in_a_float_fails_its_row() -> None:
    _, bad = checked(table_of(["a", "b", "c", "d"], seed=[2.5, float("inf"), 1e18, 1.0]))
    assert {position: code for position, (code, _) in bad.items()} == dict.fromkeys(range(3), "bad_seed")
    assert "2.5" in bad[0][1]


def test_a_table_of_no_rows_and_no_chunks_is_checked() -> None:
    table = table_of(["a"])
    assert checked(table.slice(0, 0)) == ({}, {})
    assert checked(table.schema.empty_table()) == ({}, {})


def test_a_hundred_thousand_rows_take_seconds_not_minutes() -> None:
    count = 100_000
    offsets = pa.array(np.arange(count + 1) * 50, pa.int32())
    values = pa.array(np.random.default_rng(0).integers(0, 6563, count * 50), pa.int32())
    table = table_of([f"u{i}" for i in range(count)], [[1]] * count)
    table = table.set_column(1, "tokens", pa.ListArray.from_arrays(offsets, values))
    began = time.process_time()
    rows, failures = check_rows(table, job_seed=0, max_tokens=1_500)
    assert len(rows) + len(failures) == count
    assert time.process_time() - began < 10  # about 0.5 on one core


texts = st.one_of(st.none(), st.text(max_size=4), st.sampled_from(["a", "b", "a.b/../c"]))
token = st.one_of(st.none(), st.integers(-(2**63), 2**63 - 1), st.integers(6555, 6565), st.integers(0, 6560))
rows_of_any_kind = st.lists(
    st.tuples(texts, texts, st.one_of(st.none(), st.lists(token, max_size=8)), st.one_of(st.none(), st.integers(0, 9))),
    max_size=12,
)


@settings(max_examples=150, deadline=None)
@given(rows_of_any_kind, st.integers(1, 6))
def test_every_row_is_either_good_or_a_failure_and_good_ones_are_good(
    given_rows: list[tuple[str | None, str | None, list[int | None] | None, int | None]], max_tokens: int
) -> None:
    columns = list(zip(*given_rows, strict=True)) or [()] * 4
    kinds = (pa.string(), pa.string(), pa.list_(pa.int64()), pa.int64())
    table = pa.table(
        {
            name: pa.array(column, kind)
            for name, column, kind in zip(("id", "voice_id", "tokens", "seed"), columns, kinds, strict=True)
        }
    )
    rows, failures = check_rows(table, job_seed=0, max_tokens=max_tokens)
    assert sorted([r.position for r in rows] + [f.position for f in failures]) == list(range(len(given_rows)))
    assert len({row.id for row in rows}) == len(rows)
    seen: set[str] = set()
    good = {row.position: row for row in rows}
    for position, (row_id, voice_id, tokens, _) in enumerate(given_rows):
        kept = None if tokens is None else [t for t in tokens if t not in (6561, 6562)]
        fine = (
            None not in (row_id, voice_id)
            and kept
            and all(t is not None and 0 <= t < 6561 for t in kept)
            and len(kept) <= max_tokens
            and row_id not in seen
        )
        assert (position in good) == bool(fine)
        if fine:
            assert good[position].tokens.tolist() == kept
            assert (good[position].id, good[position].voice_id) == (row_id, voice_id)
        if row_id is not None:
            seen.add(row_id)


# --- failures ---------------------------------------------------------------------------------------------------------


def test_a_failures_table_keeps_the_rows_own_columns_and_is_a_manifest(tmp_path: Path) -> None:
    table = table_of(["a", "b", None], [[1], [9_999], [2]], text=["x", "y", "z"], error=[1, 2, 3])
    manifest = Manifest.scan(write(tmp_path / "m.parquet", table))
    spans = [Span(0, 0, 3)]
    read = manifest.read(spans)
    _, failures = check_rows(read, job_seed=0, max_tokens=10)
    failed = failures_table(list(reversed(failures)), read, manifest.origins(spans))
    assert failed.schema == failures_schema(manifest.columns)
    assert failed.column_names == [
        "id",
        "voice_id",
        "error",
        "message",
        "manifest",
        "row",
        "tokens",
        "text",
        "own_error",
    ]
    assert failed.drop_columns(["message", "manifest"]).to_pylist() == [
        {
            "id": "b",
            "voice_id": "v",
            "error": "token_out_of_range",
            "row": 1,
            "tokens": [9_999],
            "text": "y",
            "own_error": 2,
        },
        {"id": None, "voice_id": "v", "error": "null_id", "row": 2, "tokens": [2], "text": "z", "own_error": 3},
    ]
    assert set(failed["manifest"].to_pylist()) == {manifest.files[0].url}
    again = Manifest.scan(write(tmp_path / "again.parquet", failed))
    assert again.columns.names == ["id", "voice_id", "tokens", "text", "own_error"]
    assert again.read([Span(0, 1, 2)])["text"].to_pylist() == ["z"]
