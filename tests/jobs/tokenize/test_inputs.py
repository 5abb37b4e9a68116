"""Which recordings an input has, and what they are called."""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.errors import InputError
from jobs.storage.folders import Folder
from jobs.tokenize.inputs import find_audio
from tests.jobs.recorded import audio_file, write_folder, write_tar


def listed(where: Path | str) -> list[dict[str, Any]]:
    found = find_audio(str(where))
    assert isinstance(found, pa.Table)
    rows: list[dict[str, Any]] = found.to_pylist()
    return rows


def test_two_clips_of_a_folder_have_one_id_or_hidden_ones_are_taken(tmp_path: Path) -> None:
    write_folder(tmp_path / "in", ["b.wav", "A/x.y.flac", "A/b.wav", ".cache/c.wav", "_old/d.wav", "A/.e.wav"])
    (tmp_path / "in/notes.txt").write_text("no audio")
    folder = tmp_path / "in"
    want = [("A/b", "A/b.wav"), ("A/x.y", "A/x.y.flac"), ("b", "b.wav")]
    assert listed(folder) == [{"id": name, "path": f"{folder}/{path}"} for name, path in want]
    assert listed(f"{folder}/") == listed(folder)
    # Of a glob, ids begin where its fixed part ends.
    assert [row["id"] for row in listed(f"{folder}/A/*.wav")] == ["b"]
    assert [row["id"] for row in listed(f"{folder}/*/*.wav")] == ["A/b"]
    assert listed(folder / "A/x.y.flac") == [{"id": "x.y", "path": f"{folder}/A/x.y.flac"}]


def test_hidden_files_are_left_out_without_a_word(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = write_folder(tmp_path / "in", ["a.wav", "_b.wav", ".cache/c.wav", "_old/d.wav"])
    (folder / ".DS_Store").write_bytes(b"")
    with caplog.at_level(logging.WARNING, "jobs"):
        assert [row["id"] for row in listed(folder)] == ["a"]
        (said,) = caplog.messages
    assert said.startswith(f"{folder}: 3 files are left out whose names, or folders' names, begin with a dot")
    # One that is named is meant.
    assert listed(folder / "_b.wav") == [{"id": "_b", "path": f"{folder}/_b.wav"}]


def test_linked_folders_are_passed_over_or_gone_through_for_ever(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "in", ["a.wav", "sub/b.wav"])
    write_folder(tmp_path / "elsewhere", ["c.wav"])
    (folder / "linked").symlink_to(tmp_path / "elsewhere")
    (folder / "sub/loop").symlink_to(folder)
    (tmp_path / "elsewhere/self").symlink_to(".")
    assert [row["id"] for row in listed(folder)] == ["a", "linked/c", "sub/b"]


def test_a_folder_that_may_not_be_looked_into_is_passed_over_without_a_word(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    folder = write_folder(tmp_path / "in", ["a.wav", "lost+found/b.wav"])
    plain = os.scandir

    def scan(path: str) -> Any:
        if path.endswith("lost+found"):
            raise PermissionError(13, "Permission denied", path)
        return plain(path)

    monkeypatch.setattr(os, "scandir", scan)
    assert [row["id"] for row in listed(folder)] == ["a"]
    assert f"left out, with what may be in it: {folder}/lost+found: Permission denied" in caplog.text


def test_names_with_brackets_are_globs(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "br [1]", ["x[2].wav", "y.wav"])
    (folder / "list[1].csv").write_text("id,path\nx,x[2].wav\n")
    assert listed(folder / "list[1].csv") == [{"id": "x", "path": f"{folder}/x[2].wav"}]
    assert listed(folder / "x[2].wav") == [{"id": "x[2]", "path": f"{folder}/x[2].wav"}]
    (folder / "list[1].csv").unlink()
    assert [row["id"] for row in listed(folder)] == ["x[2]", "y"]


@pytest.mark.parametrize(
    "path", ["https://host/a.wav?X-Amz-Signature=abcdef", "s3://key:abcdef@bucket/a.wav", "https://h[abcdef/a.wav"]
)
@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_a_password_in_a_list_is_stored_with_the_job(tmp_path: Path, path: str, kind: str) -> None:
    rows = [{"id": "x", "path": "a.wav"}, {"id": "y", "path": path}]
    lines = ["id,path", *(f"{row['id']},{row['path']}" for row in rows)] if kind == "csv" else map(json.dumps, rows)
    (tmp_path / f"list.{kind}").write_text("\n".join(lines))
    with pytest.raises(InputError, match=rf"list\.{kind}, row 2: path: .*URL") as caught:
        find_audio(str(tmp_path / f"list.{kind}"))
    assert "abcdef" not in str(caught.value)


def test_a_column_of_another_type_says_neither_file_nor_row(tmp_path: Path) -> None:
    lines = [{"id": "x", "path": "a.wav"}, {"id": "y", "path": "b.wav", "voice_id": 1.5}]
    (tmp_path / "list.jsonl").write_text("\n".join(map(json.dumps, lines)))
    with pytest.raises(InputError, match=r"list\.jsonl, row 2: voice_id is 1\.5 \(double\); it must be text"):
        find_audio(str(tmp_path / "list.jsonl"))
    write_tar(tmp_path / "a.tar", {"a.wav": audio_file()})
    write_tar(tmp_path / "b.tar", {"b.wav": audio_file(), "b.json": {"voice_id": ["v"]}})
    with pytest.raises(InputError, match=r"b\.tar, sample b: voice_id is \['v'\] \(list<.*>\); it must be text"):
        find_audio(str(tmp_path / "*.tar"))


def test_ids_on_another_store_are_urls(s3: str) -> None:
    folder = Folder(f"{s3}/clips")
    for name in ("b.wav", "A/x.wav", "list.txt"):
        folder.put(name, b"x")
    assert listed(f"{s3}/clips") == [
        {"id": "A/x", "path": f"{s3}/clips/A/x.wav"},
        {"id": "b", "path": f"{s3}/clips/b.wav"},
    ]


def test_a_tar_in_a_store_has_other_rows_than_on_a_disk(tmp_path: Path, s3: str) -> None:
    clip = audio_file()
    members = {f"{n}.{end}": clip if end == "wav" else {"id": f"own {n}"} for n in range(20) for end in ("json", "wav")}
    path = write_tar(tmp_path / "x.tar", members)
    Folder(s3).put("in/x.tar", path.read_bytes())
    Folder(s3).put("in/torn.tar", path.read_bytes()[:-20_000])
    want = [row | {"path": f"{s3}/in/x.tar"} for row in listed(path)]
    assert listed(f"{s3}/in/x.tar") == want
    assert [row["id"] for row in want] == [f"own {n}" for n in range(20)]
    with pytest.raises(InputError, match=r"torn\.tar cannot be read as a tar"):
        find_audio(f"{s3}/in")


ROWS: list[dict[str, Any]] = [
    {"id": "007", "path": "clips/a, b.wav", "text": "x"},
    {"id": "é", "path": "s3://bucket/c.wav", "text": None},
    {"id": None, "path": "/data/d.wav", "text": "y"},
    {"id": "n", "path": None, "text": "z"},
]


def test_paths_of_a_list_begin_at_the_working_directory_or_columns_get_lost(tmp_path: Path) -> None:
    (tmp_path / "list.jsonl").write_text("\n".join(json.dumps(row) for row in ROWS))
    cells = [[row[name] or "" for name in ("id", "path", "text")] for row in ROWS]
    lines = ["id,path,text", *(",".join(f'"{cell}"' for cell in line) for line in cells)]
    (tmp_path / "list.csv").write_text("\n".join(lines), encoding="utf-8-sig")
    want = [dict(row) for row in ROWS]
    want[0]["path"] = f"{tmp_path}/clips/a, b.wav"
    assert listed(tmp_path / "list.jsonl") == want
    assert listed(tmp_path / "list.csv") == [{name: value or "" for name, value in row.items()} for row in want]


def test_a_list_of_voices_has_no_ids(tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_text("voice_id,path\nanna,a.wav\n")
    assert listed(tmp_path / "list.csv") == [{"id": "anna", "voice_id": "anna", "path": f"{tmp_path}/a.wav"}]


def test_parquet_files_say_it_themselves(tmp_path: Path) -> None:
    for name in ("b.parquet", "a.parquet", "_x.parquet"):
        pq.write_table(pa.table({"id": ["x"], "path": ["a.wav"]}), tmp_path / name)
    (tmp_path / "README.md").write_text("of a dataset")
    assert find_audio(str(tmp_path)) == [f"{tmp_path}/a.parquet", f"{tmp_path}/b.parquet"]
    assert find_audio(f"{tmp_path}/b*.parquet") == [f"{tmp_path}/b.parquet"]


def output_of_a_job(folder: Path, shards: Sequence[str], more: Sequence[str] = ("ledger/finished.json",)) -> Path:
    """With an index of these shards, and what else is named."""
    for name in (*shards, "failures.parquet", "ledger/plan-0.parquet"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table({"id": ["x"]}), folder / name)
    pq.write_table(pa.table({"shard": [name for name in shards for _ in range(3)]}), folder / "index.parquet")
    (folder / "ledger/rounds").mkdir()
    for name in ("job.json", *more):
        (folder / name).write_text("{}")
    return folder


SHARDS = ("audio/0000000-a.parquet", "audio/0000001-b.parquet")


def test_the_tables_of_a_job_or_files_of_lost_tries_are_taken_for_its_shards(tmp_path: Path) -> None:
    folder = output_of_a_job(tmp_path / "out", SHARDS)
    (folder / "audio/0000001-0.parquet").write_bytes((folder / SHARDS[1]).read_bytes())
    want = [f"{folder}/{name}" for name in SHARDS]
    assert find_audio(str(folder)) == want
    assert find_audio(f"{folder}/") == want
    shutil.rmtree(folder / "ledger")  # as it is published
    assert find_audio(str(folder)) == want
    (folder / "index.parquet").rename(folder / "part-0000.parquet")
    with pytest.raises(InputError, match=r"out/index\.parquet is missing.*give the files"):
        find_audio(str(folder))
    (folder / "index.parquet").mkdir()
    (folder / "part-0000.parquet").rename(folder / "index.parquet/part-0000.parquet")
    assert find_audio(str(folder)) == want
    (folder / SHARDS[0]).unlink()
    with pytest.raises(InputError, match=r"audio/0000000-a\.parquet is missing, which index\.parquet names"):
        find_audio(str(folder))
    (folder / "index.parquet/part-0000.parquet").write_bytes(b"PAR1")
    with pytest.raises(InputError, match=r"part-0000\.parquet cannot be read as the index of a job"):
        find_audio(str(folder))


ROUND = "ledger/rounds/0001-00000002.json"


@pytest.mark.parametrize("more", [[], ["ledger/finished.json", ROUND], ["ledger/finished.json", ROUND, f"{ROUND}.x"]])
def test_rows_that_a_job_has_yet_to_make_are_left_out_without_a_word(tmp_path: Path, more: list[str]) -> None:
    folder = output_of_a_job(tmp_path / "out", SHARDS, more)
    with pytest.raises(InputError, match=rf"job in {folder} is not finished.*\(s3gen resume {folder}\), or give"):
        find_audio(str(folder))
    with pytest.raises(InputError, match=r"s3gen resume \S+ --storage-options FILE"):
        find_audio(str(folder), {"anon": True})
    assert find_audio(f"{folder}/audio/*") == [f"{folder}/{name}" for name in SHARDS]  # the way out
    (folder / "ledger/finished-0001.json").write_text("{}")
    if more:
        assert find_audio(str(folder)) == [f"{folder}/{name}" for name in SHARDS]


def test_a_job_of_tokens_is_taken_for_recordings(tmp_path: Path) -> None:
    folder = output_of_a_job(tmp_path / "t.parquet.job", ())
    with pytest.raises(InputError, match="no recordings in"):
        find_audio(str(folder))


def test_tars_are_one_list_whose_columns_they_share(tmp_path: Path) -> None:
    clip = audio_file()
    write_tar(tmp_path / "1.tar", {"a.wav": clip, "a.json": {"n": 1, "who": "x"}})
    write_tar(tmp_path / "2.tar", {"b.wav": clip, "b.json": {"n": 2.5, "who": {"name": "y"}, "more": [1]}})
    rows = listed(tmp_path)
    assert [(row["id"], row["n"], row["who"], row["more"]) for row in rows] == [
        ("a", 1.0, "x", None),
        ("b", 2.5, '{"name": "y"}', [1]),
    ]
    assert [row["path"] for row in rows] == [f"{tmp_path}/1.tar", f"{tmp_path}/2.tar"]


def test_what_a_list_calls_audio_is_taken_for_recordings(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("id,path,audio,source_audio\nx,x.wav,mono,1\n")
    write_tar(tmp_path / "b.tar", {"b.wav": audio_file(), "b.json": {"audio": "mono"}})
    assert [listed(tmp_path / "a.csv")[0][name] for name in ("source_source_audio", "source_audio")] == ["mono", "1"]
    assert listed(tmp_path / "b.tar")[0]["source_audio"] == "mono"


@pytest.mark.parametrize(
    ("files", "where", "message"),
    [
        ({}, "none", "no such file"),
        ({"in/a.txt": b"", "in/b.tar.gz": b""}, "in", "no recordings in .*in: .* it has a.txt, b.tar.gz"),
        ({"in/a.wav": b"", "in/b.tar": b""}, "in", r"several kinds \(1 audio, 1 tar\); give a glob of one"),
        ({"a.csv": b"id,file\nx,y\n"}, "a.csv", "no column path; it has file, id"),
        ({"a.jsonl": b'{"path": "x"}'}, "a.jsonl", "no column id or voice_id; it has path"),
        ({"a.csv": b"id,path\n"}, "a.csv", "has no rows"),
        ({"a.jsonl": b"{torn"}, "a.jsonl", "cannot be read as jsonl"),
        ({"a.csv": b"id,path,id\nx,y,z\n"}, "a.csv", "a.csv cannot be read as csv: the column 'id' is there 2 times"),
        ({"a.csv": b"\xff\xfe"}, "a.csv", "cannot be read as csv"),
        ({"a.tar": b"x" * 1024}, "a.tar", "cannot be read as a tar"),
        ({"a.tar": b"\0" * 10240}, "a.tar", "tars without recordings"),
    ],
)
def test_an_input_that_is_none_says_what_is_wrong(
    tmp_path: Path, files: dict[str, bytes], where: str, message: str
) -> None:
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message):
        find_audio(str(tmp_path / where))
