"""Shard files, read back by the libraries that their users have."""

from __future__ import annotations

import base64
import datetime
import decimal
import json
import math
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.formats.formats import FORMATS
from jobs.formats.keys import key_of
from jobs.formats.writers import ROW_GROUP_ROWS, Sound, json_value, pick, stored_columns
from jobs.manifest.rows import Row

IDS = ["plain", "a/b.c", "ü" * 50, "x" * 10_000, ""]
CLIPS = [bytes([i]) * (100 + i) for i in range(len(IDS))]
SOUND = Sound(suffix="flac", rate=24_000, samples=[960, 1920, 2880, 3840, 960 * 7])


def _table() -> pa.Table:
    return pa.table(
        {
            "voice_id": pa.array(["v"] * 5).dictionary_encode(),
            "text": ["hi", None, "你好", "q", "z"],
            "id": IDS,
            "tokens": pa.array([[1, 2], [3], [4], [5], [6]], pa.list_(pa.uint16())),
            "weight": pa.array([1.5, None, 2.5, 3.5, 4.5], pa.float32()),
            "view": pa.array(["a", "b", "c", "d", "e"], pa.string_view()),
            "tags": [["a"], [], None, ["b", "c"], ["d"]],
            "info": [{"x": 1}] * 5,
            "kind": pa.array(["p", "q", "p", None, "p"]).dictionary_encode(),
        }
    )


def _rows(seeds: int = 2**63) -> list[Row]:
    return [Row(i, row_id, "v", np.array([1]), seeds + i) for i, row_id in enumerate(IDS)]


def _write(tmp_path: Path, kind: str, *, keep_inputs: bool = False) -> Path:
    path = tmp_path / f"shard.{FORMATS[kind].suffix}"
    FORMATS[kind].write(path, stored_columns(_table(), _rows(), keep_inputs=keep_inputs), iter(CLIPS), SOUND)
    return path


def test_parquet_shards_follow_the_hugging_face_audio_convention(tmp_path: Path) -> None:
    table = pq.read_table(_write(tmp_path, "parquet"))
    assert table.column_names == ["id", "voice_id", "audio", "text", "weight", "view", "tags", "info", "kind"]
    assert table.schema.field("audio").type == pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    features = json.loads(table.schema.metadata[b"huggingface"])["info"]["features"]
    assert features["audio"] == {"sampling_rate": 24000, "_type": "Audio"}
    assert features["weight"] == {"dtype": "float32", "_type": "Value"}
    assert features["tags"]["feature"] == {"dtype": "string", "_type": "Value"}
    assert features["info"] == {"x": {"dtype": "int64", "_type": "Value"}}
    assert "kind" not in features  # no name for a dictionary: left to the reader
    audio = table.column("audio").to_pylist()
    assert [entry["bytes"] for entry in audio] == CLIPS
    assert [entry["path"] for entry in audio] == [key_of(row_id) + ".flac" for row_id in IDS]


@pytest.mark.parametrize("keep_inputs", [False, True])
def test_other_columns_come_out_unchanged_with_their_types(tmp_path: Path, keep_inputs: bool) -> None:
    got, given = pq.read_table(_write(tmp_path, "parquet", keep_inputs=keep_inputs)), _table()
    for name in ["text", "weight", "view", "tags", "info", "kind", *(["tokens"] if keep_inputs else [])]:
        assert got.column(name).type.equals(given.column(name).type), name
        assert got.column(name).to_pylist() == given.column(name).to_pylist()
    assert ("tokens" in got.column_names) == ("seed" in got.column_names) == keep_inputs
    if keep_inputs:
        assert got.column("seed").to_pylist() == [2**63 + i for i in range(5)]


def test_tar_shards_hold_pairs_under_keys_that_webdataset_reads(tmp_path: Path) -> None:
    with tarfile.open(_write(tmp_path, "webdataset")) as tar:
        members = tar.getmembers()
        assert [m.name for m in members] == [f"{key_of(i)}.{suffix}" for i in IDS for suffix in ("flac", "json")]
        assert {(m.mtime, m.uid, m.gid, m.uname, m.gname, m.mode) for m in members} == {(0, 0, 0, "", "", 0o644)}
        assert all(m.name.count(".") == 1 and "/" not in m.name and m.isreg() for m in members)
        contents = [tar.extractfile(m).read() for m in members]  # type: ignore[union-attr]
    assert contents[::2] == CLIPS
    values = [json.loads(text) for text in contents[1::2]]
    assert [value["id"] for value in values] == IDS
    assert values[2]["text"] == "你好"
    assert list(values[0]) == ["id", "voice_id", "text", "weight", "view", "tags", "info", "kind"]


@pytest.mark.parametrize("kind", ["parquet", "webdataset", "lhotse"])
def test_equal_shards_have_equal_bytes(tmp_path: Path, kind: str) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    assert _write(tmp_path / "a", kind).read_bytes() == _write(tmp_path / "b", kind).read_bytes()


def test_one_row_can_be_read_without_the_whole_shard(tmp_path: Path) -> None:
    count = ROW_GROUP_ROWS + 5
    columns = pa.table({"id": [str(i) for i in range(count)], "voice_id": ["v"] * count})
    path = tmp_path / "shard.parquet"
    FORMATS["parquet"].write(
        path, columns, (b"clip" for _ in range(count)), Sound(suffix="wav", rate=8_000, samples=[4] * count)
    )
    file = pq.ParquetFile(path)
    assert [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)] == [ROW_GROUP_ROWS, 5]
    assert file.read().column("id").to_pylist() == [str(i) for i in range(count)]


@pytest.mark.parametrize(
    ("value", "kind", "expected"),
    [
        (b"\x00\xff", pa.binary(), base64.b64encode(b"\x00\xff").decode()),
        (b"xy", pa.binary(2), "eHk="),
        (2**63, pa.uint64(), 2**63),
        (math.nan, pa.float32(), "NaN"),
        (-math.inf, pa.float64(), "-Infinity"),
        (0.1, pa.float64(), 0.1),
        (1_234_567_891, pa.timestamp("ns"), "1970-01-01 00:00:01.234567891"),
        (1, pa.timestamp("us", "UTC"), "1970-01-01 00:00:00.000001Z"),
        (1, pa.timestamp("ms", "Europe/Berlin"), "1970-01-01 00:00:00.001Z"),
        (1, pa.timestamp("ms", "Nowhere/Land"), "1970-01-01 00:00:00.001Z"),
        (datetime.date(2024, 2, 29), pa.date32(), "2024-02-29"),
        (5, pa.time64("ns"), "00:00:00.000000005"),
        (7, pa.duration("ms"), 7),
        (decimal.Decimal("1.10"), pa.decimal128(5, 2), "1.10"),
        ([("k", [math.nan])], pa.map_(pa.string(), pa.list_(pa.float64())), [["k", ["NaN"]]]),
        (
            {"a": [b"q"], "b": None},
            pa.struct([("a", pa.list_(pa.binary())), ("b", pa.int8())]),
            {"a": ["cQ=="], "b": None},
        ),
        ([1, None], pa.list_(pa.int8(), 2), [1, None]),
        (None, pa.timestamp("ns"), None),
    ],
)
def test_what_json_cannot_hold_is_not_lost(value: Any, kind: pa.DataType, expected: Any) -> None:
    found = json_value(pa.array([value], kind)[0])
    assert found == expected
    assert json.loads(json.dumps(found, allow_nan=False)) == expected


def test_a_text_that_is_not_utf8_keeps_its_bytes() -> None:
    torn = pa.array([b"ok\xff"]).view(pa.string())
    text = json.loads(json.dumps(json_value(torn[0])))
    assert text.encode("utf-8", "surrogateescape") == b"ok\xff"


@pytest.mark.parametrize("positions", [[], [0], [4], [0, 1, 2, 3, 4], [0, 2, 3]])
def test_rows_are_picked_in_order(positions: list[int]) -> None:
    table = _table()
    assert pick(table, positions).column("id").to_pylist() == [IDS[position] for position in positions]
