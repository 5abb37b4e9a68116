"""Clips between the engine's thread and their shard's, with encoders that are slow when the test says so."""

from __future__ import annotations

import contextlib
import io
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch

from jobs.audio.audiofile import Samples
from jobs.config.config import JobConfig, config_from
from jobs.engine.batch import Batch, Item, Trouble
from jobs.manifest.rows import Row
from jobs.measures.checks import measure
from jobs.worker import encoding
from jobs.worker.encoding import BATCHES, Abandoned, Encoders, Intake
from jobs.worker.pieces import Pieces
from jobs.worker.spool import Encoded
from s3gen import Voice
from s3gen.constants import SAMPLES_PER_TOKEN

SECONDS = 20  # that a test waits before it fails


def _config(**changes: Any) -> JobConfig:
    paths = {"model": "random:tiny", "manifest": "m", "voices": "v", "output": "o"}
    return config_from({**paths, "audio": "wav", **changes})


def _intake(encoders: Encoders) -> Intake:
    """Of rows that are not cut: the file stays empty."""
    return Intake(encoders, Pieces(io.BytesIO()))


def _batch(*numbers: int) -> tuple[Batch, list[Samples]]:
    """Rows of one token, and waves that tell which row they are of."""
    voice = Voice(torch.zeros(1, dtype=torch.int64), torch.zeros(2, 80), torch.zeros(192))
    items = [Item(Row(number, f"r{number}", "v", np.array([number]), 0), voice) for number in numbers]
    return items, [np.full(SAMPLES_PER_TOKEN, number / 100, np.float32) for number in numbers]


def _slow(monkeypatch: pytest.MonkeyPatch, wait: Callable[[int], object]) -> None:
    real = encoding.encode

    def slow(samples: Samples, audio: str, rate: int) -> bytes:
        wait(round(float(samples[0]) * 100))
        return real(samples, audio, rate)

    monkeypatch.setattr(encoding, "encode", slow)


@pytest.fixture
def maker() -> Any:
    """A thread that puts batches in, as the engine does."""
    with ThreadPoolExecutor(1) as pool:
        yield pool


def _put(maker: ThreadPoolExecutor, intake: Intake, *batches: tuple[Batch, list[Samples]]) -> list[Future[None]]:
    puts = [maker.submit(intake.put, *batch) for batch in batches]
    maker.submit(intake.end)
    return puts


def test_clips_come_out_in_the_order_of_their_batches_whichever_is_encoded_first(
    monkeypatch: pytest.MonkeyPatch, maker: ThreadPoolExecutor
) -> None:
    last = threading.Event()
    _slow(monkeypatch, lambda number: last.set() if number == 3 else number == 0 and last.wait(SECONDS))
    intake = _intake(Encoders(2, _config()))
    _put(maker, intake, _batch(0, 1), _batch(2, 3))
    clips = [(item.row.position, clip) for item, clip in intake.clips()]
    assert last.is_set()
    assert [position for position, _ in clips] == [0, 1, 2, 3]
    for position, clip in clips:
        assert isinstance(clip, Encoded)
        assert clip.samples == SAMPLES_PER_TOKEN
        pcm = np.frombuffer(clip.data[-2 * SAMPLES_PER_TOKEN :], "<i2")
        assert (pcm == round(position / 100 * 2**15)).all()


def test_a_slow_encoder_holds_the_maker_back(monkeypatch: pytest.MonkeyPatch, maker: ThreadPoolExecutor) -> None:
    go = threading.Event()
    _slow(monkeypatch, lambda number: go.wait(SECONDS))
    intake = _intake(Encoders(1, _config()))
    puts = _put(maker, intake, *(_batch(number) for number in range(BATCHES + 2)))
    puts[BATCHES - 1].result(SECONDS)
    with pytest.raises(TimeoutError):
        puts[BATCHES].result(0.3)
    with contextlib.closing(intake.clips()) as clips:
        go.set()
        next(clips)
        assert not puts[BATCHES].done()  # the first batch is encoded, and not yet spooled
        next(clips)
        puts[BATCHES].result(SECONDS)
        assert len(list(clips)) == BATCHES


def test_a_shard_that_fails_leaves_its_room_to_the_next_one(maker: ThreadPoolExecutor) -> None:
    encoders = Encoders(1, _config())
    failed = _intake(encoders)
    puts = _put(maker, failed, *(_batch(number) for number in range(6)))
    clips = failed.clips()
    next(clips)
    clips.close()
    with pytest.raises(Abandoned):
        puts[-1].result(SECONDS)
    intake = _intake(encoders)
    _put(maker, intake, *(_batch(number) for number in range(6)))
    assert [item.row.position for item, _ in intake.clips()] == list(range(6))


def test_an_error_of_the_encoder_comes_out_and_takes_no_room_along(
    monkeypatch: pytest.MonkeyPatch, maker: ThreadPoolExecutor
) -> None:
    def fail(number: int) -> None:
        if number == 1:
            raise RuntimeError("libsndfile is out of sorts")

    _slow(monkeypatch, fail)
    encoders = Encoders(1, _config())
    failed = _intake(encoders)
    _put(maker, failed, _batch(0, 1, 2), _batch(3), _batch(4))
    with pytest.raises(RuntimeError, match="out of sorts"):
        list(failed.clips())
    intake = _intake(encoders)
    _put(maker, intake, *(_batch(number) for number in range(2, 6)))
    assert len(list(intake.clips())) == 4


def test_rows_that_could_not_be_made_keep_their_place(maker: ThreadPoolExecutor) -> None:
    intake = _intake(Encoders(1, _config()))
    trouble = Trouble("out_of_memory", "too long")
    items, waves = _batch(0)
    maker.submit(intake.put, items, waves)
    maker.submit(intake.put, _batch(1)[0], trouble)
    maker.submit(intake.put, *_batch(2))
    maker.submit(intake.end)
    clips = [clip for _, clip in intake.clips()]
    assert clips[1] is trouble
    assert [type(clip) for clip in clips] == [Encoded, Trouble, Encoded]


@pytest.mark.parametrize("choice", ["keep", "fail_row"])
def test_a_suspect_wave_becomes_of_another_fate_than_the_job_chose(maker: ThreadPoolExecutor, choice: str) -> None:
    intake = _intake(Encoders(1, _config(on_bad_audio=choice)))
    items, waves = _batch(1, 2)
    waves[0][:] = 0
    waves[1][:] = np.hanning(len(waves[1])) / 4 * np.resize([1, -1], len(waves[1]))
    _put(maker, intake, (items, waves))
    silent, sound = (clip for _, clip in intake.clips())
    assert isinstance(sound, Encoded)
    assert (sound.problems, sound.measures) == ((), measure(waves[1]))
    if choice == "keep":
        assert isinstance(silent, Encoded)
        assert (silent.problems, silent.measures.silence) == (("silence",), 1)
    else:
        assert silent == Trouble("bad_audio", "silence: 1 is beyond checks.max_silence, 0.9")


@pytest.mark.parametrize("choice", ["keep", "fail_row"])
def test_a_wave_that_is_none_is_measured(maker: ThreadPoolExecutor, choice: str) -> None:
    intake = _intake(Encoders(1, _config(on_bad_audio=choice)))
    items, waves = _batch(1, 2)
    waves[0][3] = np.nan
    _put(maker, intake, (items, [waves[0], waves[1][:-1]]))
    assert [clip.error for _, clip in intake.clips() if isinstance(clip, Trouble)] == ["not_finite", "wrong_length"]
