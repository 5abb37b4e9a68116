"""What a voice table is made from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.errors import InputError
from jobs.voices import sources as voice_sources
from jobs.voices.sources import Source, find_sources
from tests.jobs.forged_parquet import KEY_VALUES, SCHEMA, TYPE_LENGTH, Struct, forged, parquet, put


def _write(folder: Path, kind: str, rows: list[dict[str, Any]]) -> str:
    path = folder / f"voices.{kind}"
    if kind == "csv":
        names = list(rows[0])
        cell = lambda value: "" if value is None else f'"{value}"'  # noqa: E731
        lines = [",".join(names), *(",".join(cell(row[name]) for name in names) for row in rows)]
        path.write_text("\n".join(lines), encoding="utf-8-sig")
    elif kind == "jsonl":
        path.write_text("\n\n".join(json.dumps(row, ensure_ascii=False) for row in rows), encoding="utf-8")
    else:
        pq.write_table(pa.Table.from_pylist(rows), path)
    return str(path)


def test_a_folder_gives_its_paths_without_suffix_as_voice_ids(tmp_path: Path) -> None:
    for name in ["b.wav", "A/x.y.FLAC", "A/z.mp3", "notes.txt", ".hidden.wav", ".cache/c.wav"]:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    sources, failures = find_sources(str(tmp_path))
    assert sources == [
        Source("A/x.y", f"{tmp_path}/A/x.y.FLAC"),
        Source("A/z", f"{tmp_path}/A/z.mp3"),
        Source("b", f"{tmp_path}/b.wav"),
    ]
    assert failures == []


def test_two_clips_of_one_voice_id_are_reported_and_the_first_is_kept(tmp_path: Path) -> None:
    for name in ["a.flac", "a.wav", "b.wav"]:
        (tmp_path / name).touch()
    sources, failures = find_sources(str(tmp_path))
    assert [source.url for source in sources] == [f"{tmp_path}/a.flac", f"{tmp_path}/b.wav"]
    assert [(f.error, f.source) for f in failures] == [("duplicate_voice_id", f"{tmp_path}/a.wav")]


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_lists_of_every_kind_give_the_same_sources(tmp_path: Path, kind: str) -> None:
    rows = [
        {"voice_id": "007", "path": "clips/a, b.wav", "note": "x"},
        {"voice_id": "é\u2028x", "path": "s3://bucket/c.wav", "note": "x"},
        {"voice_id": "abs", "path": "/data/d.wav", "note": "x"},
        {"voice_id": None, "path": "e.wav", "note": "x"},
        {"voice_id": "f", "path": None, "note": "x"},
        {"voice_id": "007", "path": "g.wav", "note": "x"},
        {"voice_id": "long" * 300, "path": "h.wav", "note": "x"},
    ]
    sources, failures = find_sources(_write(tmp_path, kind, rows))
    assert sources == [
        Source("007", f"{tmp_path}/clips/a, b.wav"),
        Source("abs", "/data/d.wav"),
        Source("é\u2028x", "s3://bucket/c.wav"),
    ]
    assert [failure.error for failure in failures] == [
        "null_voice_id",
        "null_path",
        "duplicate_voice_id",
        "long_voice_id",
    ]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("none", None, "no clips"),
        ("missing.csv", None, "no such file"),
        ("a.csv", b"id,path\nx,y\n", "no column 'voice_id'"),
        ("a.jsonl", b'{"voice_id": "x"}', "no column 'path'"),
        ("a.jsonl", b"{torn", "cannot be read as jsonl"),
        ("a.jsonl", b"[1]", "cannot be read as jsonl"),
        ("a.csv", b"\xff\xfe\x00", "cannot be read as csv"),
        ("a.parquet", b"PAR1", "cannot be read as parquet"),
        ("a.csv", b"voice_id,path\n", "no clips"),
    ],
)
def test_an_input_that_is_none_says_what_is_wrong(
    tmp_path: Path, name: str, content: bytes | None, message: str
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message):
        find_sources(str(tmp_path / name))


def test_a_column_that_is_not_read_decides_whether_a_list_is_taken(tmp_path: Path) -> None:
    ids = [f"v{row:04d}" for row in range(100)]
    table = pa.table({"voice_id": ids, "notes": pa.nulls(100, pa.binary(4)), "path": ["/a.wav"] * 100})

    def widen(footer: Struct) -> None:
        put(next(element for element in footer[SCHEMA][1][1] if TYPE_LENGTH in element), TYPE_LENGTH, 1 << 28)
        footer.pop(KEY_VALUES)  # the schema that Arrow has kept of it

    path = tmp_path / "voices.parquet"
    path.write_bytes(forged(parquet(table), widen))
    sources, failures = find_sources(str(path))
    assert ([source.voice_id for source in sources], failures) == (ids, [])


def test_a_small_list_of_voices_takes_all_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(voice_sources, "MOST_LIST_BYTES", 64 << 20)
    path = tmp_path / "voices.parquet"
    table = pa.table({"voice_id": [f"v{row}" for row in range(8_192)], "path": ["x" * (1 << 16)] * 8_192})
    pq.write_table(table, path, compression="zstd")
    assert path.stat().st_size < 1 << 20
    with pytest.raises(InputError, match=r"cannot be read as parquet: its voice ids and paths take more than"):
        find_sources(str(path))
