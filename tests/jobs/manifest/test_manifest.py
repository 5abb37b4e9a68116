"""Manifests as they come: every kind of column, every kind of damage."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.errors import InputError, StorageError
from jobs.manifest.columns import FORBIDDEN
from jobs.manifest.manifest import Manifest, Span
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
