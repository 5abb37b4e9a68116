"""Manifests as they come: every kind of column, every kind of damage."""

from __future__ import annotations

import hashlib
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jobs.errors import InputError, StorageError
from jobs.ledger.tables import failures_schema, failures_table
from jobs.manifest.columns import FORBIDDEN
from jobs.manifest.manifest import Manifest, Span
from jobs.manifest.rows import check_rows
from jobs.manifest.seeds import derived_seed
from jobs.storage.folders import Folder
from jobs.storage.urls import absolute_url


def table_of(ids: list[Any], tokens: list[Any] | None = None, **columns: Any) -> pa.Table:
    lists = tokens if tokens is not None else [[1, 2, 3]] * len(ids)
    columns = {"voice_id": ["v"] * len(ids), **columns}
    return pa.table({"id": pa.array(ids, pa.string()), "tokens": pa.array(lists, pa.list_(pa.int64())), **columns})


def write(path: Path, table: pa.Table, **options: Any) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, **options)
    return str(path)


def checked(table: pa.Table, max_tokens: int = 1_500) -> tuple[dict[str, list[int]], dict[int, tuple[str, str]]]:
    rows, failures = check_rows(table, job_seed=0, max_tokens=max_tokens)
    return {row.id: row.tokens.tolist() for row in rows}, {f.position: (f.error, f.message) for f in failures}


# --- footers ----------------------------------------------------------------------------------------------------------


def test_files_by_folder_glob_and_url_are_one_table_in_order(place: str) -> None:
    folder = Folder(place)
    for number in (2, 0, 1):
        buffer = pa.BufferOutputStream()
        pq.write_table(table_of([f"{number}-{i}" for i in range(10)]), buffer, row_group_size=3)
        folder.put(f"m/{number}.parquet", buffer.getvalue().to_pybytes())
    for pattern in (f"{place}/m", f"{place}/m/*.parquet"):
        manifest = Manifest.scan(pattern)
        assert manifest.rows == 30
        assert [file.url for file in manifest.files] == [f"{absolute_url(place)}/m/{n}.parquet" for n in range(3)]
        assert [group.rows.tolist() for group in manifest.groups] == [[3, 3, 3, 1]] * 3
        assert [group.tokens.tolist() for group in manifest.groups] == [[9, 9, 9, 3]] * 3
    assert Manifest.scan(f"{place}/m/1.parquet").rows == 10
    spans = [Span(0, 8, 10), Span(1, 0, 10), Span(2, 0, 1)]
    ids = manifest.read(spans)["id"].to_pylist()
    assert ids == ["0-8", "0-9", *(f"1-{i}" for i in range(10)), "2-0"]
    urls, rows = manifest.origins(spans)
    assert [(url[-9:], row) for url, row in zip(urls, rows.tolist(), strict=True)][:3] == [
        ("0.parquet", 8),
        ("0.parquet", 9),
        ("1.parquet", 0),
    ]


def test_scan_reads_footers_and_read_only_the_row_groups_it_needs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens = np.random.default_rng(0).integers(0, 6561, (4_000, 250)).tolist()
    url = write(tmp_path / "m.parquet", table_of([f"u{i}" for i in range(4_000)], tokens), row_group_size=500)
    size = (tmp_path / "m.parquet").stat().st_size
    fetched = _count_reads(monkeypatch)
    manifest = Manifest.scan(url)
    assert sum(fetched) < size / 20
    fetched.clear()
    table = manifest.read([Span(0, 1_700, 1_900)])
    assert table["id"].to_pylist() == [f"u{i}" for i in range(1_700, 1_900)]
    assert table["tokens"].to_pylist() == tokens[1_700:1_900]
    assert sum(fetched) < size / 6


def _count_reads(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    from jobs.manifest import manifest as module

    fetched: list[int] = []
    plain = module.open_input

    class Counted:
        closed = False

        def __init__(self, file: Any) -> None:
            self._file = file

        def __enter__(self) -> Counted:
            return self

        def __exit__(self, *args: object) -> None:
            self._file.close()

        def read(self, size: int = -1) -> bytes:
            data: bytes = self._file.read(size)
            fetched.append(len(data))
            return data

        def __getattr__(self, name: str) -> Any:
            return getattr(self._file, name)

    monkeypatch.setattr(module, "open_input", lambda url, options=None: Counted(plain(url, options)))
    return fetched


def test_the_digest_follows_content_and_place(tmp_path: Path) -> None:
    one = write(tmp_path / "one.parquet", table_of(["a", "b"]))
    digest = Manifest.scan(one).digest
    assert Manifest.scan(one).digest == digest
    time.sleep(0.01)
    write(tmp_path / "one.parquet", table_of(["a", "c"]))
    assert Manifest.scan(one).digest != digest
    two = write(tmp_path / "two.parquet", table_of(["a", "b"]))
    assert Manifest.scan(two).digest != digest


@pytest.mark.parametrize("name", FORBIDDEN)
def test_a_column_that_the_output_uses_is_refused(tmp_path: Path, name: str) -> None:
    url = write(tmp_path / "m.parquet", table_of(["a"], **{name: ["x"]}))
    with pytest.raises(InputError, match=f"m.parquet: the column '{name}' has a name that the output uses"):
        Manifest.scan(url)


@pytest.mark.parametrize(
    ("columns", "says"),
    [
        ({"tokens": None}, "no column 'tokens'; it has id, voice_id"),
        ({"id": None, "voice_id": None}, "no column 'id' and no column 'voice_id'; it has tokens"),
        ({"id": pa.array([1])}, "the column 'id' is int64, it must be text"),
        ({"voice_id": pa.array([b"v"])}, "the column 'voice_id' is binary, it must be text"),
        ({"tokens": pa.array(["1 2"])}, "the column 'tokens' is string, it must be a list of integers"),
        ({"tokens": pa.array([[1.5]])}, "the column 'tokens' is list<element: double>, it must be a list of integers"),
        ({"tokens": pa.array([[[1]]])}, "the column 'tokens' is list<element: list"),
        ({"tokens": pa.array([3])}, "the column 'tokens' is int64"),
        ({"seed": pa.array(["7"])}, "the column 'seed' is string, it must be integers"),
    ],
)
def test_missing_columns_and_wrong_types_are_named(tmp_path: Path, columns: dict[str, Any], says: str) -> None:
    table = table_of(["a"])
    for name, values in columns.items():
        table = table.drop_columns([name]) if name in table.column_names else table
        table = table.append_column(name, values) if values is not None else table
    with pytest.raises(InputError) as caught:
        Manifest.scan(write(tmp_path / "m.parquet", table))
    assert says in str(caught.value)
    assert "m.parquet" in str(caught.value)


def test_a_doubled_column_is_refused(tmp_path: Path) -> None:
    table = pa.Table.from_arrays([*table_of(["a"]).columns, pa.array(["b"])], ["id", "tokens", "voice_id", "id"])
    with pytest.raises(InputError, match="the column 'id' is there 2 times"):
        Manifest.scan(write(tmp_path / "m.parquet", table))


def test_files_with_other_columns_are_refused_by_name(tmp_path: Path) -> None:
    write(tmp_path / "m" / "a.parquet", table_of(["a"], text=["x"]))
    write(tmp_path / "m" / "b.parquet", table_of(["b"], text=[1]))
    with pytest.raises(InputError, match=r"'text' is string in .*a.parquet and int64 in .*b.parquet"):
        Manifest.scan(str(tmp_path / "m"))
    write(tmp_path / "m" / "b.parquet", table_of(["b"]))
    with pytest.raises(InputError, match=r"'text' is string in .*a.parquet and absent in .*b.parquet"):
        Manifest.scan(str(tmp_path / "m"))


def test_files_with_their_columns_in_another_order_are_one_table(tmp_path: Path) -> None:
    write(tmp_path / "m" / "a.parquet", table_of(["a"], text=["x"]))
    write(tmp_path / "m" / "b.parquet", table_of(["b"], text=["y"]).select(["text", "tokens", "voice_id", "id"]))
    manifest = Manifest.scan(str(tmp_path / "m"))
    assert manifest.read([Span(0, 0, 1), Span(1, 0, 1)])["text"].to_pylist() == ["x", "y"]


def test_what_is_no_parquet_is_bad_input(tmp_path: Path) -> None:
    whole = Path(write(tmp_path / "whole.parquet", table_of([f"u{i}" for i in range(100)]))).read_bytes()
    damaged = {
        "empty": b"",
        "text": b"id,tokens,voice_id\n" * 10,
        "truncated": whole[:-20],
        "begun": whole[: len(whole) // 2],
        "length": whole[:-8] + b"\xff\xff\xff\x7fPAR1",
        "footer": whole[:-200] + bytes(192) + whole[-8:],
    }
    for name, data in damaged.items():
        path = tmp_path / f"{name}.parquet"
        path.write_bytes(data)
        with pytest.raises(InputError, match=f"{name}.parquet: not a Parquet file"):
            Manifest.scan(str(path))
    with pytest.raises(InputError, match="no such file"):
        Manifest.scan(str(tmp_path / "absent.parquet"))
    (tmp_path / "nothing").mkdir()
    with pytest.raises(InputError, match=r"no \.parquet or \.parq or \.pq file"):
        Manifest.scan(str(tmp_path / "nothing"))
    with pytest.raises(InputError, match="has no rows"):
        Manifest.scan(write(tmp_path / "none.parquet", table_of(["a"]).slice(0, 0)))


def test_a_manifest_that_may_not_be_read_is_bad_input(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match=r"no such file: s3://.*/m\.parquet"):
        Manifest.scan(f"{s3}/m.parquet")
    with pytest.raises(InputError, match=r"a storage option is not accepted.*nonsense"):
        Manifest.scan(f"{s3}/m.parquet", {"nonsense": 1})
    with pytest.raises(InputError, match=r"manifest: no such file: s3://nobucket/m\.parquet"):
        Manifest.scan("s3://nobucket/m.parquet")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    # It may be away for a moment.
    with pytest.raises(StorageError, match=r"manifest: cannot look at s3://.*/m\.parquet: Could not connect"):
        Manifest.scan(
            f"{s3}/m.parquet", {"skip_instance_cache": True, "config_kwargs": {"retries": {"max_attempts": 0}}}
        )


def test_a_file_that_changed_after_planning_is_not_read(tmp_path: Path) -> None:
    url = write(tmp_path / "m.parquet", table_of(["a", "b"]))
    manifest = Manifest.scan(url)
    write(tmp_path / "m.parquet", table_of(["a", "b", "c"]))
    with pytest.raises(InputError, match="has changed since the job was planned"):
        manifest.read([Span(0, 0, 2)])
    (tmp_path / "m.parquet").unlink()
    with pytest.raises(InputError, match="no such file"):
        manifest.read([Span(0, 0, 2)])


def test_damaged_pages_under_a_good_footer_are_bad_input(tmp_path: Path) -> None:
    path = Path(write(tmp_path / "m.parquet", table_of([f"u{i}" for i in range(1_000)])))
    manifest = Manifest.scan(str(path))
    data = bytearray(path.read_bytes())
    data[8:400] = bytes(392)
    path.write_bytes(bytes(data))
    with pytest.raises(InputError, match="cannot read rows 0 to 1000"):
        manifest.read([Span(0, 0, 1_000)])


# --- rows -------------------------------------------------------------------------------------------------------------

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
