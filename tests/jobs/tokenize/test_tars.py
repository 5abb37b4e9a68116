"""Where the recordings of a tar lie, and what its samples say of them."""

from __future__ import annotations

import gzip
import io
import logging
import subprocess
import tarfile
from pathlib import Path
from typing import Any

import pytest

from jobs.errors import InputError
from jobs.tokenize import tars
from jobs.tokenize.tars import tar_rows
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
    members = {"a.json": said, "a.wav": CLIP, "b.wav": CLIP}
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
    assert bad["tar_problem"].startswith("what is said of sample a cannot be read: ")
    assert "tar_problem" not in good


def test_a_json_that_is_too_large_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tars, "MOST_READ", 10)
    (row,) = tar_rows(str(write_tar(tmp_path / "x.tar", {"a.wav": CLIP, "a.json": {"id": "long"}})))
    assert row["id"] is None


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["a.wav", "b.wav", "a.json", "b.json"], "between the members of sample 'a'; sort them: tar --sort=name"),
        (["a.json", "b.json", "a.wav", "b.wav"], "no recording lies beside a.json, .* sort them: tar --sort=name"),
        (["wav/a.wav", "json/a.json"], "no recording lies beside json/a.json"),
        (["a.1.wav", "b.wav", "a.2.wav"], "between the members of sample 'a'"),
    ],
)
def test_a_tar_that_is_not_sorted_gives_recordings_other_ids(tmp_path: Path, names: list[str], message: str) -> None:
    members = {name: CLIP if name.endswith("wav") else {"id": f"own {name}"} for name in names}
    with pytest.raises(InputError, match=message):
        tar_rows(str(write_tar(tmp_path / "x.tar", members)))


def test_what_is_not_read_lies_apart_or_the_hidden_files_of_a_mac_are_recordings(tmp_path: Path) -> None:
    members = {"._a.wav": b"x", "a.wav": CLIP, "._b.wav": b"x", "b.wav": CLIP, "a.lab": b"x", "._.wav": b"x"}
    assert [row["id"] for row in tar_rows(str(write_tar(tmp_path / "x.tar", members)))] == ["a", "b"]


def test_a_sparse_recording_is_read_from_the_wrong_bytes(tmp_path: Path) -> None:
    with open(tmp_path / "a.wav", "wb") as file:
        file.write(b"x" * 4096)
        file.seek(1 << 20)
        file.write(b"x" * 4096)
    path = tmp_path / "x.tar"
    subprocess.run(["tar", "--sparse", "--format=gnu", "-cf", path, "-C", tmp_path, "a.wav"], check=True)
    assert path.stat().st_size < 1 << 20
    with pytest.raises(InputError, match=r"a\.wav is stored as a sparse file; make the tar without --sparse"):
        tar_rows(str(path))


def test_the_rest_of_a_tar_is_lost(tmp_path: Path) -> None:
    whole = write_tar(tmp_path / "x.tar", {"a.wav": CLIP, "b.wav": CLIP}).read_bytes()
    member = 512 + -(-len(CLIP) // 512) * 512
    for data, message in (
        (whole[:member], f"it stops at byte {member} without the zeros"),
        (whole[: 2 * member + 100], f"it stops at byte {2 * member} without the zeros"),
        (whole[:member] + b"x" * 512 + whole[member:], f"it stops at byte {member} without the zeros"),
        (whole + whole, f"more comes after its end at byte {2 * member}"),
    ):
        (tmp_path / "y.tar").write_bytes(data)
        with pytest.raises(InputError, match=message):
            tar_rows(str(tmp_path / "y.tar"))


def test_what_tars_say_fills_the_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tars, "MOST_SAID", 30)
    members = {f"{name}.{suffix}": CLIP if suffix == "wav" else b"x" * 20 for name in "ab" for suffix in ("txt", "wav")}
    with pytest.raises(InputError, match="its json and text have over 30 bytes; make several tars"):
        tar_rows(str(write_tar(tmp_path / "x.tar", members)))


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
