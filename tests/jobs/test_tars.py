"""Where the recordings of a tar lie, and what its samples say of them."""

from __future__ import annotations

import gzip
import io
import logging
import tarfile
from pathlib import Path
from typing import Any

import pytest

from jobs import tars
from jobs.errors import InputError
from jobs.tars import tar_rows
from tests.jobs.recorded import audio_file, write_tar

CLIP = audio_file()


def rows(path: Path, **members: Any) -> list[dict[str, Any]]:
    return tar_rows(str(write_tar(path, members)))


def test_a_recording_is_read_from_the_wrong_bytes(tmp_path: Path) -> None:
    other = audio_file(seed=1, kind="FLAC")
    path = write_tar(tmp_path / "x.tar", {"a.wav": CLIP, "sub/b.c.FLAC": other, "n.txt": b"text"})
    found = tar_rows(str(path))
    assert [row["id"] for row in found] == ["a", "sub/b"]
    data = path.read_bytes()
    assert [data[row["tar_offset"] :][: row["tar_bytes"]] for row in found] == [CLIP, other]
    assert all(row["path"] == str(path) for row in found)


def test_the_json_of_a_sample_is_lost_or_moves_its_recording(tmp_path: Path) -> None:
    said = {"id": "own/id", "voice_id": "v", "path": "elsewhere.wav", "tar_bytes": 7, "n": 1}
    members = {"a.json": said, "a.wav": CLIP, "b.wav": CLIP, "c.json": {"id": "no audio"}}
    first, second = tar_rows(str(write_tar(tmp_path / "x.tar", members)))
    assert (first["id"], first["voice_id"], first["n"]) == ("own/id", "v", 1)
    assert (first["source_path"], first["source_tar_bytes"]) == ("elsewhere.wav", 7)
    assert (first["path"], first["tar_bytes"]) == (f"{tmp_path}/x.tar", len(CLIP))
    assert set(second) == {"id", "path", "tar_offset", "tar_bytes"}


def test_the_text_of_a_sample_is_lost(tmp_path: Path) -> None:
    members = {"a.txt": "é\n".encode(), "a.wav": CLIP, "b.wav": CLIP, "b.txt": b"\xff", "c.wav": CLIP}
    found = tar_rows(str(write_tar(tmp_path / "x.tar", members)))
    assert [(row["id"], row.get("txt")) for row in found] == [("a", "é\n"), (None, None), ("c", None)]


def test_two_recordings_of_a_sample_are_one(tmp_path: Path) -> None:
    found = tar_rows(str(write_tar(tmp_path / "x.tar", {"a.left.wav": CLIP, "a.right.wav": CLIP})))
    assert [row["id"] for row in found] == ["a", "a"]
    assert found[0]["tar_offset"] < found[1]["tar_offset"]


@pytest.mark.parametrize("content", [b"{torn", b"[1]", b'{"id": "x" * 9}', b"[" * 100_000, b'{"id": "' + b"x" * 5_000])
def test_a_json_that_is_none_passes_for_the_samples_id(
    tmp_path: Path, content: bytes, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(tars, "MOST_READ", 200_000)
    with caplog.at_level(logging.WARNING, "jobs"):
        (bad, good) = tar_rows(
            str(write_tar(tmp_path / "x.tar", {"a.wav": CLIP, "a.json": content, "b.wav": CLIP, "b.json": {"id": "B"}}))
        )
    assert (bad["id"], good["id"]) == (None, "B")
    assert "what is said of sample a cannot be read" in caplog.text


def test_a_json_that_is_too_large_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tars, "MOST_READ", 10)
    (row,) = tar_rows(str(write_tar(tmp_path / "x.tar", {"a.wav": CLIP, "a.json": {"id": "long"}})))
    assert row["id"] is None


def test_links_and_folders_are_recordings(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        for name, kind in (("a.wav", tarfile.SYMTYPE), ("b.wav", tarfile.DIRTYPE), ("c.wav", tarfile.LNKTYPE)):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, "/etc/passwd"
            tar.addfile(member, io.BytesIO())
    assert tar_rows(str(tmp_path / "x.tar")) == []


def test_a_torn_or_compressed_tar_is_half_read(tmp_path: Path) -> None:
    whole = write_tar(tmp_path / "x.tar", {"a.wav": CLIP, "b.wav": CLIP}).read_bytes()
    for name, data in (("torn", whole[: len(CLIP)]), ("packed", gzip.compress(whole))):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(InputError, match="cannot be read as a tar"):
            tar_rows(str(tmp_path / name))
    with pytest.raises(InputError, match="no such file"):
        tar_rows(str(tmp_path / "none.tar"))


def test_names_that_are_not_utf_8(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "x.tar", "w", encoding="latin-1", format=tarfile.GNU_FORMAT) as tar:
        member = tarfile.TarInfo("\xe9.wav")
        member.size = len(CLIP)
        tar.addfile(member, io.BytesIO(CLIP))
    (row,) = tar_rows(str(tmp_path / "x.tar"))
    assert row["id"] == "\\xe9"
