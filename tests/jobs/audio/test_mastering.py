"""What is done to a wave between the model and its file: nothing else is lost, and every length is known."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile

from jobs.audio.audiofile import ENCODINGS, Samples, encode
from jobs.audio.mastering import Mastering
from jobs.audio.watermark import Watermark
from jobs.changes import job_changes
from jobs.config.config import OPUS_RATES, STORED_RATES, JobConfig, WaveConfig, config_from
from jobs.errors import InputError
from jobs.finish import finalise
from jobs.ledger.ledger import Ledger
from jobs.manifest.manifest import Manifest
from jobs.manifest.rows import Row, check_rows
from jobs.plan import make_plan
from jobs.report.report import read, render
from jobs.storage.folders import Folder
from jobs.verify.audio_contents import _wrong_length
from jobs.verify.verify import verify
from jobs.voices.table import VoiceTable
from jobs.worker.worker import Worker, fingerprints
from s3gen import S3GenModel
from s3gen.constants import MEL_HOP, SAMPLE_RATE
from tests.jobs.inputs import good_rows, write_manifest

FRAME = MEL_HOP


def _wave(*levels: float) -> Samples:
    """A tone of 1 kHz in frames of 20 ms, each with its amplitude."""
    tone = np.sin(2 * np.pi * 1_000 * np.arange(FRAME * len(levels)) / SAMPLE_RATE)
    return (np.repeat(levels, FRAME) * tone).astype(np.float32)


def _config(**wave: Any) -> JobConfig:
    return config_from({"model": "random:tiny", "manifest": "m", "voices": "v", "output": "o", "wave": wave})


def test_with_the_defaults_a_wave_is_stored_as_it_was_made() -> None:
    wave = _wave(0, 0.5, 0.1, 0)
    mastered = Mastering(WaveConfig()).master(wave)
    assert mastered.samples is wave or np.shares_memory(mastered.samples, wave)
    assert np.array_equal(mastered.samples, wave)
    assert (mastered.trimmed_start, mastered.trimmed_end) == (0, 0)


def test_silence_within_is_not_cut_and_some_around_is_kept() -> None:
    quiet, loud = 0.001, 0.5
    levels = [quiet] * 10 + [loud] * 3 + [quiet] * 20 + [loud] + [quiet] * 6
    wave = _wave(*levels)
    mastered = Mastering(WaveConfig(trim_db=40.0, keep_silence=0.04)).master(wave)
    assert (mastered.trimmed_start, mastered.trimmed_end) == (8 * FRAME, 4 * FRAME)
    assert np.array_equal(mastered.samples, wave[8 * FRAME : -4 * FRAME])
    everything = Mastering(WaveConfig(trim_db=60.0, keep_silence=0.0)).master(wave)
    assert len(everything.samples) == len(wave)  # 54 dB below the loudest is not silence then


def test_more_silence_is_asked_to_be_kept_than_there_is() -> None:
    wave = _wave(0, 0.5, 0, 0)
    mastered = Mastering(WaveConfig(trim_db=40.0, keep_silence=10.0)).master(wave)
    assert np.array_equal(mastered.samples, wave)


@pytest.mark.parametrize("level", [0.0, 1e-20, 0.5])
def test_a_wave_that_is_the_same_all_over_is_not_cut_to_nothing(level: float) -> None:
    """Digital silence too: that nothing is said is for the checks to find."""
    wave = np.full(4 * FRAME, level, np.float32)
    assert np.array_equal(Mastering(WaveConfig(trim_db=1.0, keep_silence=0.0)).master(wave).samples, wave)


def test_one_frame_is_left_where_no_other_is_loud_enough() -> None:
    mastered = Mastering(WaveConfig(trim_db=20.0, keep_silence=0.0)).master(_wave(0, 0, 0.5, 0.01))
    assert len(mastered.samples) == FRAME
    assert (mastered.trimmed_start, mastered.trimmed_end) == (2 * FRAME, FRAME)


@pytest.mark.parametrize("rate", STORED_RATES)
def test_a_tone_is_the_same_tone_at_every_rate_and_no_sample_is_lost(rate: int) -> None:
    wave = _wave(*[0.0] * 3, *[0.5] * 24, *[0.0] * 5)
    mastered = Mastering(WaveConfig(sample_rate=rate, trim_db=40.0, keep_silence=0.0)).master(wave)
    assert (mastered.trimmed_start, mastered.trimmed_end) == (3 * rate // 50, 5 * rate // 50)
    assert mastered.trimmed_start + len(mastered.samples) + mastered.trimmed_end == rate * len(wave) // SAMPLE_RATE
    assert mastered.samples.dtype == np.float32
    at = np.arange(len(mastered.samples)) / rate + 3 / 50
    inside = slice(rate // 20, -rate // 20)  # the filter rings where the tone begins and ends
    assert np.abs(mastered.samples - 0.5 * np.sin(2 * np.pi * 1_000 * at))[inside].max() < 0.005


@pytest.mark.parametrize("audio", ENCODINGS)
def test_a_codec_adds_or_loses_samples_at_another_rate(audio: str) -> None:
    """Of the lengths that can occur: whole frames of 20 ms."""
    for rate in OPUS_RATES if audio == "ogg" else STORED_RATES:
        for frames in (1, 2, 7, 50):
            samples = np.zeros(rate // 50 * frames, np.float32)
            stored, found = soundfile.read(io.BytesIO(encode(samples, audio, rate)))
            assert (len(stored), found) == (len(samples), rate)


def test_rates_that_cannot_be_stored_are_refused_with_those_that_can() -> None:
    with pytest.raises(InputError, match=r"wave.sample_rate: 11025 is refused: give one of 8000, 16000, 22050, 24000,"):
        _config(sample_rate=11_025)
    with pytest.raises(
        InputError, match=r"wave: sample_rate 22050 is refused: with audio: ogg give one of 8000, 16000"
    ):
        config_from({**_config(sample_rate=22_050).frozen(), "audio": "ogg"})
    with pytest.raises(InputError, match=r"wave: trailing_silence_tokens 3 is refused: silence_tokens is empty"):
        config_from({**_config(trailing_silence_tokens=3).frozen(), "silence_tokens": []})
    with pytest.raises(InputError, match=r"wave.trim_db: -40 is refused: give more than 0"):
        _config(trim_db=-40)


@pytest.mark.parametrize(
    "change", [{"trim_db": 30}, {"keep_silence": 0.2}, {"sample_rate": 8_000}, {"trailing_silence_tokens": 1}]
)
def test_a_resume_goes_on_with_other_waves(change: dict[str, Any]) -> None:
    (name,) = change
    was, now = ({"config": _config(**wave).frozen()} for wave in ({}, change))
    assert [key for key, _, _ in job_changes(was, now)] == [f"wave.{name}"]


def test_silence_tokens_push_a_row_over_the_limit_unsaid(tmp_path: Path) -> None:
    path = write_manifest(
        tmp_path / "m.parquet", {"id": ["a", "b"], "voice_id": ["v"] * 2, "tokens": [[1] * 7, [1] * 8]}
    )
    table = pq.read_table(path)
    rows, failures = check_rows(table, job_seed=0, max_tokens=10, tail=_config(trailing_silence_tokens=3).tail)
    assert [row.tokens.tolist() for row in rows] == [[1] * 7 + [4299] * 3]
    assert [failure.message for failure in failures] == ["8 tokens and 3 of silence, more than max_tokens, 10"]


class _Perth:
    """In place of the network: adds a constant, and takes what the network takes."""

    def __init__(self, device: str) -> None:
        print("loaded, says the package")  # noqa: T201

    def apply_watermark(self, signal: Samples, sample_rate: int) -> Samples:
        if len(signal) < 0.033 * sample_rate:
            raise RuntimeError("Padding size should be less than the corresponding input dimension")
        return signal + np.float32(0.25)


@pytest.fixture
def perth(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    package, inner = ModuleType("perth"), "perth.perth_net.perth_net_implicit.perth_watermarker"
    package.PerthImplicitWatermarker = _Perth  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "perth", package)
    for name in ("perth.perth_net", "perth.perth_net.perth_net_implicit", inner):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    return package


@pytest.mark.usefixtures("perth")
def test_the_watermark_comes_last_and_says_nothing_on_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    wave = _wave(0, 0.5, 0)
    mastering = Mastering(WaveConfig(watermark=True, trim_db=40.0, keep_silence=0.0, sample_rate=8_000))
    assert capsys.readouterr().out == ""
    plain = Mastering(WaveConfig(trim_db=40.0, keep_silence=0.0, sample_rate=8_000)).master(wave).samples
    # One frame: shorter than the network takes.
    assert np.array_equal(mastering.master(wave).samples, plain + np.float32(0.25))


def test_a_watermark_that_moves_samples_is_an_error(perth: ModuleType) -> None:
    perth.PerthImplicitWatermarker = type(  # type: ignore[attr-defined]
        "Shorter", (_Perth,), {"apply_watermark": lambda self, signal, sample_rate: signal[1:]}
    )
    with pytest.raises(RuntimeError, match="made 9599 samples of 9600 at 24000 Hz"):
        Watermark().put(_wave(*[0.1] * 20), SAMPLE_RATE)


def test_a_watermark_that_is_not_installed_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "perth", None)
    with pytest.raises(
        InputError, match=r"wave.watermark: resemble-perth does not load .*pip install resemble-perth librosa"
    ):
        Mastering(WaveConfig(watermark=True))


@pytest.mark.parametrize("rate", [8_000, 24_000])
def test_the_watermark_is_found_again_and_is_always_the_same(rate: int) -> None:
    pytest.importorskip("perth", reason="the extra watermark is not installed")
    mark = Watermark()
    times = np.arange(3 * rate) / rate
    voice = sum(np.sin(2 * np.pi * 120 * n * times) / n for n in range(1, 20)) * np.sin(2 * np.pi * 3 * times) ** 2
    wave = (voice / np.abs(voice).max() / 2).astype(np.float32)
    marked = mark.put(wave, rate)
    assert np.array_equal(marked, mark.put(wave, rate))
    assert len(marked) == len(wave)
    scores = [float(mark._perth.get_watermark(each, sample_rate=rate, round=False)) for each in (wave, marked)]
    assert scores[0] < 0.5 < 0.9 < scores[1]


WAVE = {"trim_db": 6.0, "keep_silence": 0.0, "sample_rate": 16_000, "trailing_silence_tokens": 2}


@pytest.fixture(scope="module")
def mastered_job(tiny_model: S3GenModel, table: Path, tmp_path_factory: pytest.TempPathFactory) -> Ledger:
    """A finished job of 12 rows, two of which are cut, in which something is done of everything."""
    folder = tmp_path_factory.mktemp("mastered")
    columns = good_rows(12)
    columns["tokens"][3] = list(range(100, 160))
    columns["tokens"][7] = list(range(300, 370))
    manifest = write_manifest(folder / "manifest.parquet", columns)
    values = {"model": "random:tiny", "manifest": str(manifest), "voices": str(table), "output": str(folder / "out")}
    more = {"max_tokens": 50, "on_long": "split", "keep_inputs": True, "engine": {"n_cfm_timesteps": 2}, "wave": WAVE}
    config = config_from(values | more)
    voices = VoiceTable.open(str(table))
    prints = fingerprints(tiny_model, voices)
    job = {"config": config.frozen(), "fingerprints": prints, "versions": {}, "limit": None}
    plan = make_plan(Manifest.scan(str(manifest)), config.shard_rows)
    ledger = Ledger.start(Folder(config.output), job, plan)
    Worker(ledger, tiny_model, voices, max_frames=2_048).run(0)
    finalise(ledger)
    return ledger


def _stored(ledger: Ledger) -> list[dict[str, Any]]:
    (name,) = ledger.folder.list("audio/")
    rows: list[dict[str, Any]] = pq.read_table(io.BytesIO(ledger.folder.read(name))).to_pylist()
    return rows


def test_lengths_of_trimmed_and_resampled_rows_add_up_to_what_their_tokens_make(mastered_job: Ledger) -> None:
    index = pq.read_table(io.BytesIO(mastered_job.folder.read("index.parquet"))).to_pylist()
    trimmed = 0
    for row, entry in zip(_stored(mastered_job), index, strict=True):
        wave, rate = soundfile.read(io.BytesIO(row["audio"]["bytes"]))
        assert (len(wave), rate, entry["duration"]) == (entry["samples"], 16_000, entry["samples"] / 16_000)
        made = entry["trimmed_start"] + entry["samples"] + entry["trimmed_end"]
        assert made == 640 * (len(row["tokens"]) + 2)  # the stored tokens are the manifest's own
        trimmed += entry["trimmed_start"] + entry["trimmed_end"]
    assert trimmed > 0
    assert sum(len(entry["cuts"]) > 0 for entry in index) == 2
    (record,) = mastered_job.records()
    assert record.samples == sum(entry["samples"] for entry in index) * 3 // 2
    assert verify(mastered_job.folder.url).findings == []


def test_verify_passes_a_row_that_lost_samples_as_if_they_were_trimmed() -> None:
    row = Row(0, "a", "v", np.arange(10), 1)
    told = {"samples": 6_000, "trimmed_start": 320, "trimmed_end": 80}
    assert _wrong_length(told, row, WaveConfig(**WAVE)) is None
    assert _wrong_length(told | {"samples": 5_999}, row, WaveConfig(**WAVE)) is not None
    assert _wrong_length(told | {"trimmed_start": 720, "trimmed_end": -320}, row, WaveConfig(**WAVE)) is not None
    untrimmed = WaveConfig(**WAVE | {"trim_db": None})
    assert _wrong_length(told, row, untrimmed) is not None
    assert _wrong_length({"samples": 6_400, "trimmed_start": 0, "trimmed_end": 0}, row, untrimmed) is None


def test_card_and_report_tell_of_another_wave_than_is_stored(mastered_job: Ledger) -> None:
    text = mastered_job.folder.read("README.md").decode()
    assert "16 kHz, mono" in text
    assert "the column audio decodes to 16 kHz" in text
    assert "- audio: silence tokens added to each row: 2; trimmed where it begins or ends 6 dB below" in text
    page = render(read(mastered_job, None))
    assert "pitch up to 8 kHz" in page
    assert "12 kHz" not in page
    assert "flac in parquet, 16 kHz, mono" in page
    assert page.count('src="data:audio/flac;base64,') > 2
    assert "its rate is" not in page
