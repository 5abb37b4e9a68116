"""What a job of tokens keeps of its input, and under which names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.config.config import checked
from jobs.errors import InputError
from jobs.ledger.tables import failures_schema, renamed
from jobs.manifest.columns import check_columns
from jobs.manifest.manifest import Manifest
from jobs.tokenize.columns import TAKEN, Clip, TokenColumns, check_audio_columns
from jobs.tokenize.config import TokenizeConfig
from jobs.tokenize.inputs import find_audio
from jobs.tokenize.worker import columns_of
from tests.jobs.recorded import write_audio_parquet

AUDIO = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def rows(
    table: pa.Table, voice: str | None = None, url: str = "/in/part-1.parquet", base: str = "/in/"
) -> tuple[list[dict[str, Any]], list[Clip]]:
    check_audio_columns(url, table.schema)
    columns = TokenColumns(table.schema, voice, base)
    (batch,) = table.to_batches()
    known, clips = columns.rows(batch, [url] * len(table), np.arange(10, 10 + len(table)))
    assert known.schema == columns.known
    return known.to_pylist(), clips


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"id": ["a"]}, "no column 'audio' and no column 'path'; it has id"),
        ({"path": ["a"], "text": ["x"]}, "no column 'id' and no column 'voice_id'"),
        ({"id": [1.5], "path": ["a"]}, "'id' is double, it must be text"),
        ({"id": ["a"], "path": [1]}, "'path' is int64, it must be text"),
        ({"id": ["a"], "path": ["a"], "tar_offset": ["x"]}, "'tar_offset' is string, it must be integers"),
        ({"id": ["a"], "audio": [[0.5]]}, "'audio' is list<.*>, it must be a struct of bytes and path, or bytes"),
        ({"id": ["a"], "audio": [{"array": [0.5], "sampling_rate": 8}]}, "it must be a struct of bytes and path"),
    ],
)  # fmt: skip
def test_a_file_without_recordings_is_taken(columns: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=f"x.parquet: .*{message}"):
        check_audio_columns("x.parquet", pa.table(columns).schema)


def test_a_doubled_column_is_taken() -> None:
    field = pa.field("path", pa.string())
    with pytest.raises(InputError, match="'path' is there 2 times"):
        check_audio_columns("x", pa.schema([field, field, pa.field("id", pa.string())]))


def test_paths_of_a_list_lead_nowhere() -> None:
    table = pa.table({"id": [7, None], "path": ["a/b.wav", None], "text": ["x", "y"]})
    found, clips = rows(table)
    assert found == [
        {"id": "7", "voice_id": "7", "path": "/in/a/b.wav", "text": "x"},
        {"id": None, "voice_id": None, "path": None, "text": "y"},
    ]
    assert clips == [Clip("/in/a/b.wav"), Clip(None)]


def test_voices_are_those_of_the_option_then_of_the_input_then_the_ids() -> None:
    table = pa.table({"id": ["a"], "path": ["/a.wav"]})
    with_voices = table.append_column("voice_id", pa.array(["v"]).dictionary_encode())
    found = [rows(each, voice)[0][0]["voice_id"] for each in (table, with_voices) for voice in (None, "given")]
    assert found == ["a", "given", "v", "given"]
    assert rows(with_voices.drop_columns("id"))[0][0]["id"] == "v"


def test_rows_without_a_voice_fail_where_others_have_one() -> None:
    voices = ["v", None, ""]
    table = pa.table({"id": ["a", "b", "c"], "path": ["/a"] * 3, "voice_id": voices})
    assert [row["voice_id"] for row in rows(table)[0]] == ["v", "b", "c"]


def test_files_of_two_folders_share_their_rows_ids() -> None:
    table = pa.table({"audio": pa.array([{"bytes": b"1"}], pa.struct([("bytes", pa.binary())]))})
    found = [rows(table, url=f"s3://b/in/{split}/0.parquet", base="s3://b/in/")[0] for split in ("train", "test")]
    assert [row["id"] for (row,) in found] == ["train/0/10", "test/0/10"]


@pytest.mark.parametrize(("where", "first"), [("", "train/0"), ("train", "0"), ("*/0.parquet", "train/0")])
def test_ids_of_rows_begin_at_the_last_folder(tmp_path: Path, where: str, first: str) -> None:
    for name in ("train/0", "test/0"):
        (tmp_path / name).parent.mkdir()
        write_audio_parquet(tmp_path / f"{name}.parquet", [{"bytes": b"1"}])
    source = f"{tmp_path}/{where}".rstrip("/")
    config = checked(TokenizeConfig, {"input": source, "out": str(tmp_path / "out"), "model": "random:tiny"})
    found = find_audio(source)
    assert isinstance(found, list)
    manifest = Manifest.of(found, check=check_audio_columns)
    columns = columns_of(manifest, config)
    known, _ = columns.rows(pq.read_table(found[-1]).to_batches()[0], [found[-1]], np.array([3]))
    assert known["id"].to_pylist() == [f"{first}/3"]


@pytest.mark.parametrize(
    "audio",
    [
        pa.array([{"bytes": b"RIFF", "path": None}]),  # path: null
        pa.array([b"RIFF"], pa.binary(4)),
        pa.array([b"RIFF"]).dictionary_encode(),
        pa.StructArray.from_arrays([pa.array([b"RIFF"]).dictionary_encode()], ["bytes"]),
    ],
)
def test_audio_of_another_binary_type_is_refused(audio: pa.Array) -> None:
    found, (clip,) = rows(pa.table({"audio": audio}))
    assert (found[0]["id"], clip.url, clip.data.as_py()) == ("part-1/10", None, b"RIFF")
    paths = pa.array([{"bytes": None, "path": "a.wav"}])  # bytes: null
    assert rows(pa.table({"audio": paths}))[1] == [Clip("/in/a.wav")]


SIGNED = "https://host/a.wav?X-Amz-Signature=abc&x=1"


def test_a_signature_gets_into_the_failures() -> None:
    paths = [SIGNED, "https://me:word@host/b.wav", "/local?sig=1.wav"]
    found, clips = rows(pa.table({"id": ["a", "b", "c"], "path": paths}))
    assert [clip.url for clip in clips] == paths
    assert [row["path"] for row in found] == [
        "https://host/a.wav?X-Amz-Signature=***&x=1",
        "https://***@host/b.wav",
        "/local?sig=1.wav",
    ]
    (row,), _ = rows(pa.table({"audio": pa.array([{"bytes": b"1", "path": SIGNED}], AUDIO)}))
    assert "abc" not in row["id"]


def test_audio_is_kept_or_a_row_without_an_id_has_none() -> None:
    audio = [
        {"bytes": b"1", "path": "x/y.z.flac"},
        {"bytes": b"2", "path": None},
        {"bytes": None, "path": "e.wav"},
        None,
    ]
    table = pa.table({"audio": pa.array(audio, AUDIO), "path": ["mine"] * 4, "voice_id": ["v"] * 4})
    found, clips = rows(table)
    assert [row["id"] for row in found] == ["x/y.z", "part-1/11", "e", "part-1/13"]
    assert set(found[0]) == {"id", "voice_id", "path"}
    assert found[0]["path"] == "mine"
    assert [clip.data and clip.data.as_py() for clip in clips] == [b"1", b"2", None, None]
    assert [clip.url for clip in clips] == ["/in/x/y.z.flac", None, "/in/e.wav", None]
    plain = pa.table({"audio": pa.array([b"1", None], pa.large_binary()), "id": ["a", "b"]})
    assert [clip.data and clip.data.as_py() for clip in rows(plain)[1]] == [b"1", None]


def test_a_part_of_a_tar_is_taken_for_the_tar() -> None:
    table = pa.table({"id": ["a"], "path": ["/x.tar"], "tar_offset": [512], "tar_bytes": [44]})
    _, clips = rows(table)
    assert clips == [Clip("/x.tar", 512, 44)]
    columns = TokenColumns(table.schema, None)
    assert columns.table.names == ["id", "voice_id", "tokens", "audio_seconds"]
    # A failures table is itself an input: it has to say where in the tar.
    assert columns.failures.names[-3:] == ["path", "tar_offset", "tar_bytes"]


def test_the_manifest_is_one_that_synth_refuses() -> None:
    names = ["duration", "source_duration", "shard", "row", "seed", "tokens", "error", "message", "manifest", "text"]
    found = renamed([pa.field(name, pa.string()) for name in names], TAKEN, "source_")
    assert [field.name for field in found] == [
        *("source_source_duration", "source_duration", "source_shard", "source_row", "source_seed", "source_tokens"),
        *("error", "message", "manifest", "text"),
    ]  # fmt: skip
    schema = pa.schema(
        [pa.field("id", pa.string()), pa.field("path", pa.string()), *(pa.field(n, pa.string()) for n in names)]
    )
    columns = TokenColumns(schema, None)
    assert TokenColumns(columns.known, None).known == columns.known  # of failures that are tried again
    check_columns("tokens.parquet", columns.table)
    assert columns.failures == failures_schema(columns.known)


def test_tokens_get_to_other_rows() -> None:
    table = pa.table({"id": ["a", "b", "c"], "path": ["/a", "/b", "/c"], "row": [7, 8, 9]})
    columns = TokenColumns(table.schema, "v")
    known, _ = columns.rows(table.to_batches()[0], [""] * 3, np.arange(3))
    tokens = {2: np.array([5, 6560], np.int32), 0: np.array([1], np.int32)}
    made = columns.made(known, tokens, {0: 0.04, 2: 0.08})
    assert made.schema == columns.table
    assert made.to_pylist() == [
        {"id": "a", "voice_id": "v", "tokens": [1], "audio_seconds": 0.04, "source_row": 7},
        {"id": "c", "voice_id": "v", "tokens": [5, 6560], "audio_seconds": 0.08, "source_row": 9},
    ]
