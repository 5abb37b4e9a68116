"""Shards of two files, for lhotse: read by it, killed between the two, damaged."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile

from jobs.finish import finalise
from jobs.formats.clips import read_clip
from jobs.ledger.ledger import Ledger
from jobs.manifest.manifest import Manifest
from jobs.plan import make_plan
from jobs.storage.folders import Folder
from jobs.verify.verify import verify
from jobs.voices.table import VoiceTable
from jobs.worker.worker import Worker, fingerprints
from s3gen import S3GenModel
from tests.jobs import made_job
from tests.jobs.inputs import good_rows, write_manifest
from tests.jobs.killing import Killed, killing

lhotse = pytest.importorskip("lhotse", reason="lhotse is not installed")

ROWS = 14
# Columns that lhotse has other uses for, as names or as what they hold.
COLUMNS: dict[str, Any] = {
    "text": [None if n == 3 else f"text {n} «ü»" for n in range(ROWS)],
    "language": ["de"] * ROWS,
    "width": list(range(ROWS)),
    "start": [1.5] * ROWS,
    "image": [{"width": n, "id": "x"} for n in range(ROWS)],
    "shape": [[1, 2]] * ROWS,
}


def _made(folder: Path, audio: str = "flac", **columns: Any) -> Ledger:
    manifest = made_job.write_manifest(folder / "in" / "manifest.parquet", ROWS, **columns)
    ledger = made_job.start(str(folder / "out"), manifest, format="lhotse", audio=audio)
    made_job.make_all(ledger)
    finalise(ledger)
    return ledger


@pytest.mark.parametrize("audio", ["flac", "wav", "ogg", "mp3"])
def test_lhotse_hears_something_else_or_loses_a_column(tmp_path: Path, audio: str) -> None:
    from lhotse.audio.backend import audio_backend

    ledger = _made(tmp_path, audio, **COLUMNS)
    index = pq.read_table(tmp_path / "out/index.parquet").to_pylist()
    given = {row["id"]: row for row in pq.read_table(tmp_path / "in/manifest.parquet").to_pylist()}
    # Others of its ways to read audio want a torchaudio that loads beside any torch.
    with audio_backend("LibsndfileBackend"):
        cuts = list(lhotse.CutSet.from_shar(in_dir=str(tmp_path / "out/audio")))
        heard = [cut.load_audio() for cut in cuts]
    assert len(cuts) == len(index) == 12
    for cut, wave, row in zip(cuts, heard, index, strict=True):
        stored, _ = soundfile.read(io.BytesIO(read_clip(ledger.folder, row["shard"], row["row"])), dtype="float32")
        assert (wave.shape, cut.num_samples, cut.sampling_rate) == ((1, row["samples"]), row["samples"], 24_000)
        np.testing.assert_allclose(wave[0], stored, atol=1e-7 if audio == "mp3" else 0)
        (spoken,) = cut.supervisions
        own = given[row["id"]]
        assert (spoken.id, spoken.speaker, spoken.text) == (row["id"], row["voice_id"], own["text"])
        assert (spoken.language, spoken.start, spoken.duration) == ("de", 0.0, cut.duration)
        assert (cut.custom["width"], cut.custom["start"], cut.start) == (own["width"], 1.5, 0.0)
        assert (cut.custom["shape"], json.loads(cut.custom["image"])) == ([1, 2], own["image"])


def test_lhotse_takes_shards_by_other_names_apart(tmp_path: Path) -> None:
    """A list of files of one's own, in the order that one likes."""
    ledger = _made(tmp_path)
    records = list(ledger.records())[::-1]
    files = {
        "cuts": [ledger.folder.path(record.cuts.name) for record in records if record.cuts],
        "recording": [ledger.folder.path(record.audio.name) for record in records if record.audio],
    }
    index = pq.read_table(tmp_path / "out/index.parquet", columns=["id", "shard"]).to_pylist()
    index.sort(key=lambda row: row["shard"], reverse=True)
    cuts = lhotse.CutSet.from_shar(fields=files)
    assert [cut.supervisions[0].id for cut in cuts] == [row["id"] for row in index]


def test_a_worker_that_dies_between_the_two_files_leaves_half_a_shard(
    tiny_model: S3GenModel, table: Path, tmp_path: Path
) -> None:
    manifest = write_manifest(tmp_path / "manifest.parquet", good_rows(3))
    voices = VoiceTable.open(str(table))
    config = {"model": "random:tiny", "voices": str(table), "format": "lhotse", "audio": "ogg"}
    for kills in range(5):
        output = str(tmp_path / f"out{kills}")
        job = made_job.job_of(output, str(manifest), **config)
        job["fingerprints"] = fingerprints(tiny_model, voices)
        ledger = Ledger.start(Folder(output), job, make_plan(Manifest.scan(str(manifest)), 3))
        worker = Worker(ledger, tiny_model, voices, max_frames=2_048)
        with pytest.MonkeyPatch.context() as patch:
            killing(patch, ("upload", "create"), kills)
            died = False
            try:
                worker.run(0)
            except Killed:
                died = True
        assert died == (kills < 4)  # recordings, cuts, index, record
        assert len(ledger.committed()) == (not died)
        if died:
            worker.run(0)
        finalise(ledger)
        (record,) = ledger.records()
        assert record.audio is not None
        assert record.cuts is not None
        assert sorted(ledger.folder.list("audio/")) == sorted([record.audio.name, record.cuts.name])
        assert verify(output).findings == []


def _change(ledger: Ledger, change: Callable[[list[bytes]], list[bytes]]) -> None:
    """Other lines in the cuts of the first shard, with a record that vouches for them."""
    record = next(ledger.records())
    assert record.cuts is not None
    lines = gzip.decompress(ledger.folder.read(record.cuts.name)).splitlines(keepends=True)
    _replace(ledger, gzip.compress(b"".join(change(lines))))


def _replace(ledger: Ledger, data: bytes) -> None:
    record = next(ledger.records())
    assert record.cuts is not None
    ledger.folder.put(record.cuts.name, data)
    cuts = replace(record.cuts, bytes=len(data), sha256=hashlib.sha256(data).hexdigest())
    ledger.folder.put(ledger.record_names(0)[0], replace(record, cuts=cuts).to_bytes())


def _found(ledger: Ledger) -> set[str]:
    return {finding.code for finding in verify(ledger.folder.url).findings}


@pytest.mark.parametrize(
    ("change", "codes"),
    [
        (lambda lines: lines[:-1], {"unreadable_file"}),
        (lambda lines: [*lines, lines[0]], {"unreadable_file"}),
        (lambda lines: [lines[1], lines[0], *lines[2:]], {"unreadable_file"}),
        (lambda lines: [b"[]\n", *lines[1:]], {"unreadable_file"}),
        (lambda lines: [b'{"supervisions": []}\n', *lines[1:]], {"unreadable_file"}),
        (lambda lines: [b"\xff\n", *lines[1:]], {"unreadable_file"}),
        (lambda lines: [lines[0].replace(b'"num_samples": ', b'"num_samples": 1'), *lines[1:]], {"unreadable_file"}),
        (lambda lines: [lines[0].replace(b'"duration": 0.', b'"duration": 9.', 1), *lines[1:]], {"index"}),
        (lambda lines: [lines[0].replace(b'"speaker": "v0"', b'"speaker": "v1"'), *lines[1:]], {"index"}),
        (lambda lines: [lines[0].replace(b'"text 0"', b'"other"'), *lines[1:]], set()),  # the manifest's own
    ],
)
def test_cuts_that_belong_to_other_recordings_are_found(
    tmp_path: Path, change: Callable[[list[bytes]], list[bytes]], codes: set[str]
) -> None:
    ledger = _made(tmp_path)
    assert _found(ledger) == set()
    _change(ledger, change)
    assert _found(ledger) == codes


def test_a_list_of_cuts_that_is_torn_or_gone_is_found(tmp_path: Path) -> None:
    ledger = _made(tmp_path)
    record = next(ledger.records())
    assert record.cuts is not None
    whole = ledger.folder.read(record.cuts.name)
    for data in (b"", b"no gzip", whole[: len(whole) // 2], whole[:-8] + bytes(8), whole[:20] + b"\0" * 9 + whole[29:]):
        _replace(ledger, data)
        assert _found(ledger) == {"unreadable_file"}, data[:20]
    ledger.folder.delete(record.cuts.name)
    assert _found(ledger) == {"missing_file"}
    ledger.folder.put(ledger.record_names(0)[0], replace(record, cuts=None).to_bytes())
    assert _found(ledger) == {"record"}


def test_the_cuts_of_a_try_that_lost_are_taken_for_a_shard(tmp_path: Path) -> None:
    ledger = _made(tmp_path)
    stray = ledger.attempt(1).cuts_name
    ledger.folder.put(stray, b"of a late try")
    assert _found(ledger) == {"stray"}
    ledger.clear_range(0, list(ledger.records()))
    assert _found(ledger) == set()


def test_texts_that_are_no_texts_stay_as_they_are(tmp_path: Path) -> None:
    ledger = _made(tmp_path, text=[["a", "b"]] * ROWS, language=pa.array([None] * ROWS, pa.string()))
    record = next(ledger.records())
    assert record.cuts is not None
    for line in gzip.decompress(ledger.folder.read(record.cuts.name)).splitlines():
        cut = json.loads(line)
        assert cut["custom"] == {"text": ["a", "b"], "language": None}
        assert {"text", "language"}.isdisjoint(cut["supervisions"][0])
