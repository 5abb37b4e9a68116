"""Workers of each kind, their model on a device that is not the CPU, as `tests.s3gen.standin_device` plays it."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from jobs.ledger.ledger import Ledger
from jobs.storage.folders import Folder
from jobs.voices.build import VoiceBuild
from jobs.voices.parts import VoiceMaker
from jobs.voices.sources import find_sources
from jobs.voices.table import VoiceTable
from jobs.worker.worker import Worker
from s3gen import S3GenModel
from tests.jobs import made_job
from tests.jobs.inputs import good_rows, write_clips, write_manifest
from tests.jobs.tokenize.test_worker import begin, made
from tests.s3gen.standin_device import StandinDevice, on_standin


class _Queue:
    """A stream, and an event in one: the device is never behind."""

    def __init__(self, *_: Any, **__: Any) -> None:
        self.wait_stream = self.record = lambda other: None
        self.synchronize = lambda: None
        self.query = lambda: True


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[S3GenModel]:
    """The tiny model there, for this thread and all that are started."""
    run, empty = threading.Thread.run, torch.empty

    def run_there(thread: threading.Thread) -> None:
        with StandinDevice():
            run(thread)

    monkeypatch.setattr(threading.Thread, "run", run_there)
    monkeypatch.setattr(torch, "empty", lambda *size, pin_memory=False, **kwargs: empty(*size, **kwargs))
    for name in ("Stream", "Event", "current_stream"):
        monkeypatch.setattr(torch.cuda, name, _Queue)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: contextlib.nullcontext())
    model = S3GenModel.from_pretrained("random:tiny")
    with StandinDevice():
        yield on_standin(model)


def _audio(model: S3GenModel, table: Path, folder: Path, **config: Any) -> dict[str, bytes]:
    manifest = write_manifest(folder / "manifest.parquet", good_rows(8, most=60))
    ledger: Ledger = made_job.start(str(folder / model.device.type), str(manifest), **{"max_tokens": 100, **config})
    assert Worker(ledger, model, VoiceTable.open(str(table)), max_frames=400).run(0).rows_failed == 0
    (name,) = ledger.folder.list("audio/")
    rows = pq.read_table(ledger.folder.path(name)).to_pylist()
    return {row["id"]: row["audio"]["bytes"] for row in rows}


def _voices(model: S3GenModel, folder: Path) -> VoiceTable:
    out = str(folder / f"{model.device.type}.parquet")
    build = VoiceBuild(out, None, voice_fingerprint=model.voice_fingerprint(), max_seconds=None, append=False)
    maker = VoiceMaker(model, Folder(build.parts_url), max_seconds=build.max_seconds)
    sources, failures = find_sources(str(folder / "clips"), {})
    report = build.finish([maker.run(part) for part in build.parts(sources)], failures)
    assert report.failures == []
    return VoiceTable.open(out)


CHOICES = {
    "plain": {},
    "bfloat16": {"engine": {"dtype": "bfloat16"}},
    "split": {"on_long": "split", "max_tokens": 48, "wave": {"trailing_silence_tokens": 2, "sample_rate": 16_000}},
}


@pytest.mark.parametrize("choices", CHOICES.values(), ids=CHOICES)
def test_a_worker_mixes_its_device_with_the_cpu(
    gpu: S3GenModel, tiny_model: S3GenModel, table: Path, tmp_path: Path, choices: dict[str, Any]
) -> None:
    there = _audio(gpu, table, tmp_path, audio="wav", **choices)
    here = _audio(tiny_model, table, tmp_path, audio="wav", **choices)
    assert there.keys() == here.keys()
    for row_id, clip in here.items():
        want, got = (np.frombuffer(each[44:], np.int16).astype(np.float64) for each in (clip, there[row_id]))
        # Batches of another device are others; bfloat16 rounds what they share otherwise.
        assert np.linalg.norm(got - want) < (0.3 if "engine" in choices else 5e-3) * np.linalg.norm(want)


def test_voices_are_made_by_mixing_a_device_with_the_cpu(
    gpu: S3GenModel, tiny_model: S3GenModel, tmp_path: Path
) -> None:
    write_clips(tmp_path / "clips")
    there, here = _voices(gpu, tmp_path), _voices(tiny_model, tmp_path)
    names = [name for batch in here.rows(["voice_id"]) for name in batch["voice_id"].to_pylist()]
    assert there.voices == here.voices == len(names) > 1
    made_there, made_here = there.get_many(names), here.get_many(names)
    for name in names:
        got, want = made_there[name], made_here[name]
        assert torch.equal(got.prompt_token, want.prompt_token)
        assert torch.allclose(got.prompt_feat, want.prompt_feat, atol=1e-5)
        assert torch.allclose(got.embedding, want.embedding, atol=1e-5)


def test_tokens_are_made_by_mixing_a_device_with_the_cpu(
    gpu: S3GenModel, tiny_model: S3GenModel, tmp_path: Path
) -> None:
    write_clips(tmp_path / "clips")
    rows = SimpleNamespace()
    for name, model in (("there", gpu), ("here", tiny_model)):
        (tmp_path / name).mkdir()
        setattr(rows, name, made(begin(tmp_path / "clips", tmp_path / name), model))
    assert rows.there == rows.here
    assert len(rows.here) > 1
