"""Loudness is that of BS.1770 at every rate, and noise is told from speech."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jobs.measures.loudness import BLOCK, SILENT, _high_pass, _shelf, _weighted, integrated_loudness
from jobs.measures.snr import HIGHEST, LOWEST, STATISTICS, STEP, wada_snr
from s3gen.constants import SAMPLE_RATE
from tests.conftest import speech_like

Samples = npt.NDArray[np.float32]
RATES = (8_000, 16_000, 22_050, SAMPLE_RATE, 44_100, 48_000)
# At other rates than 48 kHz a filter bends towards half the rate; a meter may be so far off (EBU Tech 3341).
TOLERANCE = 0.1


def tone(level: float, seconds: float, rate: int = SAMPLE_RATE, hertz: float = 997.0) -> Samples:
    """A sine with its peak at so many dB of full scale."""
    time = np.arange(round(seconds * rate)) / rate
    return (10 ** (level / 20) * np.sin(2 * np.pi * hertz * time)).astype(np.float32)


def silence(seconds: float) -> Samples:
    return np.zeros(round(seconds * SAMPLE_RATE), np.float32)


def test_the_filters_at_48_khz_are_not_the_published_ones() -> None:
    shelf = (1.53512485958697, -2.69169618940638, 1.19839281085285), (-1.69065929318241, 0.73248077421585)
    high_pass = (1.0, -2.0, 1.0), (-1.99004745483398, 0.99007225036621)
    for ours, published in ((_shelf(48_000), shelf), (_high_pass(48_000), high_pass)):
        for found, expected in zip(ours, published, strict=True):
            assert found == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("rate", [8_000, SAMPLE_RATE])
@pytest.mark.parametrize("length", [1, BLOCK - 1, BLOCK, BLOCK + 1, 3_000])
def test_the_filters_lose_their_state_between_blocks(rate: int, length: int) -> None:
    wave = np.random.default_rng(length).standard_normal(length).astype(np.float32)
    expected = wave.astype(np.float64)
    for b, a in (_shelf(rate), _high_pass(rate)):
        given_, expected = expected, np.zeros(length)
        first = second = 0.0
        for at, value in enumerate(given_):
            expected[at] = b[0] * value + first
            first, second = b[1] * value - a[0] * expected[at] + second, b[2] * value - a[1] * expected[at]
    assert np.abs(_weighted(wave, rate) - expected).max() < 5e-6


@pytest.mark.parametrize("rate", RATES)
def test_a_tone_is_louder_at_one_rate_than_at_another(rate: int) -> None:
    assert integrated_loudness(tone(0, 1, rate), rate) == pytest.approx(-3.01, abs=TOLERANCE)
    assert integrated_loudness(tone(-20, 1, rate), rate) == pytest.approx(-23.01, abs=TOLERANCE)


def test_what_is_high_or_very_low_counts_as_the_middle_does() -> None:
    middle = integrated_loudness(tone(-20, 2), SAMPLE_RATE)
    assert integrated_loudness(tone(-20, 2, hertz=8_000), SAMPLE_RATE) - middle == pytest.approx(3.3, abs=0.2)
    assert integrated_loudness(tone(-20, 2, hertz=30), SAMPLE_RATE) - middle < -8


def test_pauses_make_speech_quieter() -> None:
    """As in EBU Tech 3341, cases 3 and 4, of one channel."""
    loud = tone(-23, 60)
    quiet = np.concatenate((tone(-36, 2), loud, tone(-36, 2)))
    lost = np.concatenate((tone(-80, 2), quiet, tone(-80, 2)))
    for wave in (loud, quiet, lost):
        assert integrated_loudness(wave, SAMPLE_RATE) == pytest.approx(-26.0, abs=TOLERANCE)
    between = np.concatenate((silence(5), loud, silence(5)))
    assert integrated_loudness(between, SAMPLE_RATE) == pytest.approx(-26.0, abs=TOLERANCE)


def test_a_short_or_silent_wave_has_no_loudness() -> None:
    assert integrated_loudness(tone(-20, 0.04), SAMPLE_RATE) == pytest.approx(-23.0, abs=0.3)
    assert integrated_loudness(np.zeros(0, np.float32), SAMPLE_RATE) == SILENT
    assert integrated_loudness(silence(3), SAMPLE_RATE) == SILENT
    assert integrated_loudness(tone(-80, 2), SAMPLE_RATE) == SILENT


@given(st.integers(0, 60_000), st.floats(-90, 0), st.sampled_from(RATES))
@settings(deadline=None, max_examples=30)
def test_some_wave_is_out_of_range_or_not_twice_as_loud_by_6_db(length: int, level: float, rate: int) -> None:
    wave = np.random.default_rng(length).uniform(-1, 1, length).astype(np.float32) * np.float32(10 ** (level / 20))
    found, half = integrated_loudness(wave, rate), integrated_loudness(wave / 2, rate)
    assert SILENT <= half <= found <= 5
    if half > SILENT:
        assert found - half == pytest.approx(20 * math.log10(2), abs=1e-3)


# --- noise ------------------------------------------------------------------------------------------------------------


def amplitudes(level: float, count: int = 400_000) -> Samples:
    """Gamma speech in normal noise, so many dB above it: what the estimate supposes."""
    source = np.random.default_rng(3)
    speech = source.gamma(0.4, size=count) * source.choice([-1, 1], count)
    noise = source.standard_normal(count) * math.sqrt(0.56) * 10 ** (-level / 20)
    return (np.abs(speech + noise) / 100).astype(np.float32)


@pytest.mark.parametrize("level", [0, 7, 15, 22, 30, 40])
def test_the_table_belongs_to_another_distribution(level: float) -> None:
    assert wada_snr(amplitudes(level)) == pytest.approx(level, abs=1.0)


def test_the_table_does_not_reach_from_end_to_end() -> None:
    assert len(STATISTICS) == (HIGHEST - LOWEST) / STEP + 1
    assert list(STATISTICS) == sorted(set(STATISTICS))


@pytest.mark.parametrize("gain", [1.0, 0.01])
def test_noise_on_a_voice_is_not_seen(gain: float) -> None:
    voice = speech_like(4.0, SAMPLE_RATE, seed=1).numpy()
    voice *= np.sin(np.linspace(0, 6 * math.pi, len(voice))) ** 2
    noise = np.random.default_rng(0).standard_normal(len(voice)) * math.sqrt(np.square(voice).mean())
    found = [wada_snr(np.abs(voice + noise * 10 ** (-level / 20)).astype(np.float32) * gain) for level in (30, 15, 0)]
    assert found == sorted(found, reverse=True)
    assert found[0] - found[1] > 6 < found[1] - found[2]


def test_a_fade_is_taken_for_a_clean_voice() -> None:
    noisy = amplitudes(10)
    assert wada_snr(np.concatenate((silence(5), noisy))) == wada_snr(noisy)
    assert wada_snr(silence(1)) == LOWEST
    assert LOWEST <= wada_snr(np.ones(1, np.float32)) <= HIGHEST
