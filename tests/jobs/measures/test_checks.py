"""What is measured of a wave is what the docs say, and tells accidents from speech."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import soundfile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from jobs.audio.audiofile import Samples
from jobs.config.config import STORED_RATES, ChecksConfig, JobConfig, config_from
from jobs.errors import InputError
from jobs.ledger.ledger import Ledger
from jobs.ledger.tables import INDEX_SCHEMA
from jobs.measures.checks import CHECKS, CLIPPED_AT, RANGES, explain, inconsistency, measure, problems
from jobs.measures.opinion import OPINIONS
from jobs.storage.folders import Folder
from jobs.verify.verify import verify
from s3gen import HiFTNetConfig
from s3gen.audio import resample
from s3gen.constants import SAMPLE_RATE, SAMPLES_PER_TOKEN
from tests.conftest import speech_like
from tests.jobs.made_job import job_of, make, start, write_manifest

CLIPS = sorted((Path(__file__).parents[3] / "demo/voices").glob("*.wav"))
LIMITS = ChecksConfig()
FRAME, EDGE = SAMPLE_RATE // 50, SAMPLE_RATE // 200  # samples of 20 and of 5 ms
UNASKED: dict[str, Any] = {"letters_per_second": None, **dict.fromkeys(OPINIONS)}
PATHS = {"model": "random:tiny", "manifest": "m", "voices": "v", "output": "o"}

finite = st.floats(width=32, allow_nan=False, allow_infinity=False)
steps16 = st.integers(-(2**15), 2**15).map(lambda step: step / 2**15)


def waves(elements: st.SearchStrategy[float]) -> st.SearchStrategy[Samples]:
    return arrays(np.float32, st.integers(0, 1_500), elements=elements, fill=elements)


def config(**changes: Any) -> JobConfig:
    return config_from(PATHS | changes)


def utterance(seed: int = 0) -> Samples:
    """Two seconds of a voice between silences of low noise, with the start fade."""
    voice = speech_like(2.0, SAMPLE_RATE, seed=seed, pitch=90.0 + 60 * (seed % 3)).numpy()
    voice *= np.sin(np.linspace(0, math.pi, len(voice)))
    noise = np.random.default_rng(seed).standard_normal(SAMPLE_RATE // 5) / 5_000
    wave = np.concatenate((noise, voice, noise)).astype(np.float32)
    wave[:FRAME] = 0
    wave[FRAME : 2 * FRAME] *= (1 - np.cos(np.linspace(0, math.pi, FRAME))) / 2
    return wave


def loud(wave: Samples) -> int:
    """Where it is loudest."""
    return int(np.abs(wave).argmax())


@pytest.mark.parametrize("seed", range(6))
def test_a_voice_between_pauses_is_called_suspect(seed: int) -> None:
    assert problems(measure(utterance(seed)), LIMITS) == []
    assert problems(measure(utterance(seed) / 20), LIMITS) == []  # a whisper


@pytest.mark.parametrize("clip", CLIPS, ids=lambda path: path.stem)
def test_a_clip_that_begins_and_ends_quietly_is_called_suspect(clip: Path) -> None:
    samples, rate = soundfile.read(clip, dtype="float32")
    assert problems(measure(resample(torch.from_numpy(samples), rate, SAMPLE_RATE).numpy()), LIMITS) == []


@pytest.mark.parametrize("tokens", [1, 2, 3])
def test_a_row_of_a_few_tokens_is_called_suspect(tokens: int) -> None:
    """The start fade takes half of one token's frames, and no whole number of periods has a mean of exactly 0."""
    for seed in range(20):
        voice, length = utterance(seed), tokens * SAMPLES_PER_TOKEN
        wave = voice[loud(voice) - length // 2 :][:length] * 0.5
        wave[:FRAME] = 0
        wave[FRAME : 2 * FRAME] *= (1 - np.cos(np.linspace(0, math.pi, FRAME))) / 2
        wave[-FRAME // 2 :] *= np.linspace(1, 0, FRAME // 2)
        assert problems(measure(wave), LIMITS) == []


def _clipped(wave: Samples) -> Samples:
    return np.clip(wave * 10, -CLIPPED_AT, CLIPPED_AT)


ACCIDENTS: dict[str, tuple[Callable[[Samples], Samples], list[str]]] = {
    "nothing at all": (lambda wave: np.zeros_like(wave), ["silence"]),
    "nothing but noise": (lambda wave: wave[: SAMPLE_RATE // 5], ["silence"]),
    "a blip": (lambda wave: np.concatenate((np.zeros(20 * len(wave), np.float32), wave)), ["silence"]),
    "too loud": (_clipped, ["clipping"]),
    "an offset": (lambda wave: wave + np.float32(0.08), ["dc"]),
    "a large offset": (lambda wave: wave - np.float32(0.15), ["dc", "click_start", "click_end"]),
    "a late beginning": (lambda wave: wave[loud(wave) :], ["click_start"]),
    "an early end": (lambda wave: wave[: loud(wave)], ["click_end"]),
    "one wild sample": (lambda wave: np.append(wave, np.float32(-0.5)), ["click_end"]),
}


@pytest.mark.parametrize("accident", ACCIDENTS)
@pytest.mark.parametrize("seed", range(3))
def test_an_accident_is_not_seen_or_taken_for_another(accident: str, seed: int) -> None:
    spoil, names = ACCIDENTS[accident]
    measures = measure(spoil(utterance(seed)))
    assert problems(measures, LIMITS) == names
    text = explain(measures, LIMITS)
    assert [part.split(":")[0] for part in text.split("; ")] == names
    assert all(f"checks.{CHECKS[name][1]}" in text for name in names)


def test_a_message_lacks_check_value_or_limit() -> None:
    measures = measure(np.full(480, -0.25, np.float32))
    limits = ChecksConfig(max_click=None, max_dc=0.125)
    assert explain(measures, limits) == "dc: -0.25 is beyond checks.max_dc, 0.125"


def test_a_check_that_is_switched_off_still_speaks() -> None:
    off = ChecksConfig(max_silence=None, max_clipped=None, max_dc=None, max_click=None)
    for wave in (np.zeros(960, np.float32), np.ones(960, np.float32)):
        assert problems(measure(wave), off) == []
        assert explain(measure(wave), off) == ""


def test_a_value_at_its_limit_fails() -> None:
    measures = measure(np.ones(960, np.float32))
    assert problems(measures, ChecksConfig(max_clipped=1, max_dc=1, max_click=1)) == []
    assert problems(replace(measures, dc=-1.0), ChecksConfig(max_clipped=1, max_dc=0.99, max_click=1)) == ["dc"]


# --- the definitions --------------------------------------------------------------------------------------------------


def test_levels_are_in_another_unit() -> None:
    sine = np.sin(2 * np.pi * 1_000 * np.arange(SAMPLE_RATE) / SAMPLE_RATE).astype(np.float32)
    assert measure(sine).rms_db == pytest.approx(-3.0103, abs=1e-3)
    assert measure(sine).peak == 1
    assert measure(np.full(1_000, -0.5, np.float32)).rms_db == pytest.approx(-6.0206, abs=1e-4)
    assert measure(np.ones(1_000, np.float32)).rms_db == 0
    assert measure(np.zeros(1_000, np.float32)).rms_db == -120


def test_silence_is_another_share_than_that_of_frames() -> None:
    quiet, audible = np.float32(0.99e-3), np.float32(1.01e-3)
    wave = np.full(3 * FRAME + 7, audible)
    wave[FRAME : 2 * FRAME] = -quiet
    assert measure(wave).silence == 0.25
    wave[-7:] = quiet  # the short frame is held against its own length
    assert measure(wave).silence == 0.5
    wave[-1] = 0.5
    assert measure(wave).silence == 0.25


def test_clipping_is_counted_elsewhere_than_where_the_vocoder_clamps() -> None:
    assert HiFTNetConfig().audio_limit == pytest.approx(float(CLIPPED_AT))
    clamped = torch.tensor([2.0, -2.0, 0.98, 0.0]).clamp(-0.99, 0.99).numpy()
    assert measure(clamped).clipped == 0.5
    assert measure(np.nextafter(np.full(4, CLIPPED_AT), np.float32(0))).clipped == 0


def test_a_click_is_looked_for_further_in_or_not_at_the_very_end() -> None:
    wave = np.zeros(10 * EDGE, np.float32)
    wave[EDGE : -EDGE - 1] = 0.5  # the last step that is not looked at, on both sides
    assert (measure(wave).click_start, measure(wave).click_end) == (0, 0)
    wave[EDGE - 1], wave[-EDGE] = 0.25, -0.25
    assert (measure(wave).click_start, measure(wave).click_end) == (0.25, 0.25)
    wave[0], wave[-1] = -0.5, 0.75
    assert (measure(wave).click_start, measure(wave).click_end) == (0.5, 0.75)
    alternating = np.tile(np.array([1, -1], np.float32), EDGE)
    assert (measure(alternating).click_start, measure(alternating).click_end) == (2, 2)


def test_a_wave_of_no_or_one_sample_has_no_measures() -> None:
    nothing = asdict(measure(np.zeros(0, np.float32)))
    levels = {"rms_db": -120.0, "silence": 1.0, "loudness": -70.0, "snr": -20.0}
    assert nothing == {**dict.fromkeys(RANGES, 0.0), **levels}
    one = asdict(measure(np.array([-0.5], np.float32)))
    assert one == pytest.approx(
        {"peak": 0.5, "rms_db": -6.0206, "silence": 0, "clipped": 0, "dc": -0.5, "click_start": 0.5, "click_end": 0.5}
        | {"loudness": -3.260124, "snr": -20}
    )


@pytest.mark.parametrize("rate", STORED_RATES)
def test_a_wave_of_another_rate_is_measured_as_if_it_were_slower(rate: int) -> None:
    wave = np.zeros(2 * rate, np.float32)
    wave[rate : rate + rate // 50] = 0.5  # one frame of 100, that begins and ends with a click
    assert measure(wave, rate).silence == np.float32(0.99)
    assert (measure(wave, rate).click_start, measure(wave, rate).click_end) == (0, 0)
    assert measure(wave[rate - rate // 200 + 1 :], rate).click_start == 0.5
    assert measure(wave[rate - rate // 200 :], rate).click_start == 0


def test_samples_beyond_full_scale_are_measured_as_if_they_were_stored() -> None:
    wave = utterance() * 5
    assert measure(wave) == measure(np.clip(wave, -1, 1))
    assert measure(np.full(480, 3e38, np.float32)).rms_db == 0


# --- any wave ---------------------------------------------------------------------------------------------------------


@given(waves(finite))
@settings(deadline=None, max_examples=150)
def test_a_measure_of_some_wave_is_not_finite_or_out_of_its_range(wave: Samples) -> None:
    before = wave.copy()
    measures = measure(wave)
    for name, value in asdict(measures).items():
        assert RANGES[name][0] <= value <= RANGES[name][1]
        assert value == np.float32(value)
    assert np.array_equal(wave, before)


@given(waves(finite))
@settings(deadline=None, max_examples=50)
def test_the_index_changes_a_measure_so_that_its_problems_no_longer_follow(wave: Samples) -> None:
    measures = measure(wave)
    columns = {**asdict(measures), **UNASKED, "problems": ",".join(problems(measures, LIMITS))}
    fields = [INDEX_SCHEMA.field(name) for name in columns]
    (entry,) = pa.Table.from_pylist([columns], schema=pa.schema(fields)).to_pylist()
    assert inconsistency(entry, config()) is None


@given(waves(finite))
@settings(deadline=None, max_examples=50)
def test_the_sign_of_a_wave_matters(wave: Samples) -> None:
    assert measure(-wave) == replace(measure(wave), dc=-measure(wave).dc)


@given(waves(steps16))
@settings(deadline=None, max_examples=50)
def test_half_the_wave_has_not_half_the_measures(wave: Samples) -> None:
    whole, half = measure(wave), measure(wave / 2)
    for name in ("peak", "click_start", "click_end", "dc"):
        assert getattr(half, name) == getattr(whole, name) / 2
    assert half.rms_db == pytest.approx(max(whole.rms_db - 6.0206, -120), abs=1e-4)
    assert half.silence >= whole.silence


@given(waves(steps16))
@settings(deadline=None, max_examples=50)
def test_a_wave_played_backwards_has_its_clicks_at_the_wrong_end(wave: Samples) -> None:
    forwards, backwards = measure(wave), measure(wave[::-1])
    assert (backwards.click_start, backwards.click_end) == (forwards.click_end, forwards.click_start)
    assert (backwards.peak, backwards.clipped) == (forwards.peak, forwards.clipped)


# --- what verify holds against them -----------------------------------------------------------------------------------


def _entry(wave: Samples) -> dict[str, Any]:
    measures = measure(wave)
    return {**asdict(measures), **UNASKED, "problems": ",".join(problems(measures, LIMITS))}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"peak": 1.5}, "peak is 1.5, not a number from 0 to 1"),
        ({"rms_db": float("-inf")}, "rms_db is -inf, not a number from -120 to 0"),
        ({"silence": float("nan")}, "silence is nan"),
        ({"dc": None}, "dc is None"),
        ({"click_end": -0.1}, "click_end is -0.1"),
        ({"dc": -0.5}, "they are 'dc'"),
        ({"problems": "silence"}, "problems are 'silence', by its measures and the job's limits they are ''"),
        ({"problems": None}, "problems are None"),
        ({"letters_per_second": -1.0}, "letters_per_second is -1.0"),
        ({"letters_per_second": float("nan")}, "letters_per_second is nan"),
        ({"dnsmos_sig": 3.0}, "dnsmos_sig is 3.0, but the job asks for no opinions"),
    ],
)
def test_a_damaged_measure_is_passed(change: dict[str, Any], says: str) -> None:
    assert inconsistency(_entry(utterance()), config()) is None
    assert says in str(inconsistency(_entry(utterance()) | change, config()))


def test_a_row_that_should_have_failed_is_passed() -> None:
    silent = _entry(np.zeros(960, np.float32))
    assert inconsistency(silent, config()) is None
    assert "silence" in str(inconsistency(silent, config(on_bad_audio="fail_row")))
    assert "they are ''" in str(inconsistency(silent, config(checks={"max_silence": None})))


# --- the job ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "change"),
    [
        ("on_bad_audio", {"on_bad_audio": "fail_row"}),
        ("checks.max_dc", {"checks": {"max_dc": 0.2}}),
        ("checks.max_silence", {"checks": {"max_silence": None}}),
        ("mos", {"mos": "dnsmos"}),
    ],
)
def test_a_resume_judges_the_rest_of_the_rows_by_other_limits(tmp_path: Path, key: str, change: dict[str, Any]) -> None:
    manifest = write_manifest(tmp_path / "in" / "manifest.parquet")
    output = str(tmp_path / "out")
    start(output, manifest, **_frozen())
    ledger = Ledger.open(Folder(output))
    ledger.check_unchanged(job_of(output, manifest, **_frozen()))
    with pytest.raises(InputError, match=key):
        ledger.check_unchanged(job_of(output, manifest, **_frozen(**change)))


def test_verify_passes_a_damaged_measure(tmp_path: Path) -> None:
    made = start(str(tmp_path / "out"), write_manifest(tmp_path / "in" / "manifest.parquet"), **_frozen())
    make(made, 0)
    assert verify(made.folder.url).findings == []
    job = json.loads(made.folder.read("job.json"))
    job["config"]["checks"]["max_click"] = 0.001  # by which every row would have problems
    made.folder.put("job.json", json.dumps(job).encode())
    findings = verify(made.folder.url).findings
    assert {finding.code for finding in findings} == {"index"}
    assert {finding.where for finding in findings} == {"shard 0"}
    assert len(findings) == 4
    assert "problems are ''" in findings[0].message


def _frozen(**changes: Any) -> dict[str, Any]:
    values: dict[str, Any] = json.loads(json.dumps(config(**changes).frozen()))
    return {key: values[key] for key in ("on_bad_audio", "checks", "mos")}
