"""Rows whose audio is suspect, among sound ones: what becomes of them, and that nothing becomes of the others."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from jobs.audio.audiofile import Samples
from jobs.config.config import config_from
from jobs.ledger.ledger import Ledger
from jobs.ledger.records import StoredFile
from jobs.manifest.manifest import Manifest
from jobs.measures.checks import RANGES
from jobs.measures.opinion import OPINIONS, Opinion
from jobs.plan import make_plan
from jobs.storage.folders import Folder
from jobs.voices.table import VoiceTable
from jobs.worker.worker import Worker, fingerprints
from s3gen import S3GenModel
from s3gen.constants import SAMPLE_RATE, SAMPLES_PER_TOKEN
from tests.jobs.inputs import good_rows, write_manifest

MUTE = 4242  # the token of rows that come out silent
SUSPECT = (1, 4)


class Mute:
    """A model that hums, and is silent for rows that have a certain token."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def synthesize(self, tokens: Sequence[torch.Tensor], *args: Any, **kwargs: Any) -> list[torch.Tensor]:
        return [self._hum(row) * float(MUTE not in row.tolist()) for row in tokens]

    def _hum(self, tokens: torch.Tensor) -> torch.Tensor:
        time = torch.arange(SAMPLES_PER_TOKEN * len(tokens))
        pitch = 0.02 + 0.01 * float(tokens[0]) / 6_561
        return 0.2 * torch.sin(pitch * time) * torch.hann_window(len(time), periodic=False)


class Peak:
    """In place of the network: its opinion is the largest sample, 4 where it is silent."""

    def opinion(self, samples: Samples, rate: int) -> Opinion:
        assert rate == SAMPLE_RATE
        return Opinion(*[float(np.abs(samples).max()) or 4.0] * len(OPINIONS))


def _run(model: S3GenModel, table: Path, folder: Path, **choices: Any) -> Ledger:
    """A finished job of six rows, two of them mute."""
    columns = good_rows(6)
    columns["text"] = [None if number == 3 else "ab, " * number for number in range(6)]
    for row in SUSPECT:
        columns["tokens"][row] = [MUTE, *columns["tokens"][row]]
    folder.mkdir()
    manifest = write_manifest(folder / "manifest.parquet", columns)
    paths = {"manifest": str(manifest), "voices": str(table), "output": str(folder / "out")}
    config = config_from({"model": "random:tiny", "shard_rows": 100, **paths, **choices})
    voices = VoiceTable.open(str(table))
    job = {"config": config.frozen(), "fingerprints": fingerprints(model, voices), "versions": {}, "limit": None}
    ledger = Ledger.start(Folder(config.output), job, make_plan(Manifest.scan(str(manifest)), config.shard_rows))
    Worker(ledger, cast("S3GenModel", Mute(model.device)), voices, max_frames=8_192).run(0)
    return ledger


def _rows(ledger: Ledger, file: StoredFile | None) -> list[dict[str, Any]]:
    assert file is not None
    rows: list[dict[str, Any]] = pq.read_table(io.BytesIO(ledger.folder.read(file.name))).to_pylist()
    return rows


def _others(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    return [row for row in rows if row["id"] not in {f"row-{number:04d}" for number in SUSPECT}]


def test_a_suspect_row_is_lost_or_stored_against_the_jobs_choice(
    tiny_model: S3GenModel, table: Path, tmp_path: Path
) -> None:
    kept = _run(tiny_model, table, tmp_path / "keep")
    failed = _run(tiny_model, table, tmp_path / "fail", on_bad_audio="fail_row")
    (keeping,), (failing,) = kept.records(), failed.records()
    assert (keeping.rows_done, keeping.rows_failed, keeping.failures) == (6, 0, None)
    assert (failing.rows_done, failing.rows_failed) == (4, 2)
    assert (keeping.errors, keeping.problems) == ({}, {"silence": 2})
    assert (failing.errors, failing.problems) == ({"bad_audio": 2}, {})

    index = _rows(kept, keeping.index)
    assert [row["problems"] for row in index] == ["silence" if n in SUSPECT else "" for n in range(6)]
    assert [row["silence"] == 1 for row in index] == [n in SUSPECT for n in range(6)]
    for row in _rows(failed, failing.failures):
        assert row["error"] == "bad_audio"
        assert row["message"] == "silence: 1 is beyond checks.max_silence, 0.9"
        assert MUTE in row["tokens"]

    # The neighbours: the same bytes and the same measures, in the same order.
    assert _others(_rows(kept, keeping.audio)) == _rows(failed, failing.audio)
    described = ("id", "voice_id", "samples", "sha256", *RANGES, "problems")
    assert [[row[name] for name in described] for row in _others(index)] == [
        [row[name] for name in described] for row in _rows(failed, failing.index)
    ]


def test_the_measures_in_the_index_are_those_of_another_row(
    tiny_model: S3GenModel, table: Path, tmp_path: Path
) -> None:
    """Batches go longest first; the index is in the manifest's order."""
    ledger = _run(tiny_model, table, tmp_path / "job", audio="wav")
    (record,) = ledger.records()
    for row, stored in zip(_rows(ledger, record.index), _rows(ledger, record.audio), strict=True):
        pcm = np.frombuffer(stored["audio"]["bytes"][-2 * row["samples"] :], "<i2")
        assert row["peak"] == pytest.approx(np.abs(pcm.astype(int)).max() / 2**15, abs=2**-15)


def test_a_row_has_the_opinions_or_the_text_of_another(
    tiny_model: S3GenModel, table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jobs.worker.encoding.Dnsmos", Peak)
    ledger = _run(tiny_model, table, tmp_path / "job", mos="dnsmos")
    (record,) = ledger.records()
    for number, row in enumerate(_rows(ledger, record.index)):
        assert {row[name] for name in OPINIONS} == {row["peak"] or 4}
        rate = row["letters_per_second"]
        assert rate == (None if number == 3 else pytest.approx(2 * number / row["duration"]))
    unasked = _run(tiny_model, table, tmp_path / "unasked")
    (record,) = unasked.records()
    assert {row[name] for row in _rows(unasked, record.index) for name in OPINIONS} == {None}


def test_a_check_that_is_switched_off_fails_rows(tiny_model: S3GenModel, table: Path, tmp_path: Path) -> None:
    ledger = _run(tiny_model, table, tmp_path / "job", on_bad_audio="fail_row", checks={"max_silence": None})
    (record,) = ledger.records()
    assert (record.rows_done, record.rows_failed) == (6, 0)
    assert {row["problems"] for row in _rows(ledger, record.index)} == {""}
