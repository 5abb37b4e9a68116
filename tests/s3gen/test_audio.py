"""Features against computations in numpy that share no code with them."""

import math
import sys

import numpy as np
import pytest
import torch

from s3gen import audio
from s3gen.audio import (
    PROMPT_MIN_SAMPLES,
    PromptMel,
    SpeakerFeatures,
    TokenizerMel,
    check_wav,
    mel_filters,
    resample,
    speaker_features,
)


def noise(samples, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return (0.1 * torch.randn(samples, generator=generator, dtype=torch.float64)).to(dtype)


def spectra(wav, size, hop):
    """(T, size // 2 + 1) complex: every whole Hann-windowed frame."""
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(size) / size)
    starts = range(0, len(wav) - size + 1, hop)
    return np.fft.rfft([wav[start : start + size] * window for start in starts])


@pytest.fixture
def float64_default():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.usefixtures("float64_default")
@pytest.mark.parametrize(("rate", "n_fft", "mels"), [(24_000, 1_920, 80), (16_000, 400, 128), (16_000, 400, 80)])
def test_mel_filters_are_slaneys_to_float32_rounding(rate, n_fft, mels):
    theirs = sys.modules["torchaudio"].functional.melscale_fbanks(
        n_fft // 2 + 1, 0.0, 8_000.0, mels, rate, norm="slaney", mel_scale="slaney"
    )
    ours = mel_filters(rate, n_fft, mels, 8_000.0)
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours.double(), theirs.T, rtol=1e-6, atol=1e-10)


@pytest.mark.parametrize("loudness", [1.0, 1e-4])  # at the second, the power's floor shows
@pytest.mark.parametrize("samples", [721, 960, 4_799, 4_800, 5_000])
def test_prompt_mel_equals_numpy(samples, loudness):
    mel = PromptMel().double()
    wav = loudness * noise(samples)
    padded = np.pad(wav.numpy(), 720, mode="reflect")
    magnitude = np.sqrt(np.abs(spectra(padded, 1_920, 480)) ** 2 + 1e-9)
    expected = np.log(np.maximum(magnitude @ mel.filters.numpy().T, 1e-5))
    assert expected.shape == (samples // 480, 80)
    np.testing.assert_allclose(mel(wav).numpy(), expected, atol=1e-6)  # the window is a float32


def test_prompt_mel_of_silence_is_the_floor():
    assert torch.equal(PromptMel()(torch.zeros(2_400)), torch.full((5, 80), math.log(1e-5)))


@pytest.mark.parametrize("samples", [201, 1_600, 1_759])
def test_tokenizer_mel_equals_numpy(samples):
    mel = TokenizerMel(128).double()
    wav = noise(samples) * torch.linspace(0, 1, samples) ** 6  # some bins below the floor
    power = np.abs(spectra(np.pad(wav.numpy(), 200, mode="reflect"), 400, 160)[:-1]) ** 2
    decades = np.log10(np.maximum(power @ mel.filters.numpy().T, 1e-10))
    expected = (np.maximum(decades, decades.max() - 8.0) + 4.0) / 4.0
    assert expected.shape == (samples // 160, 128)
    np.testing.assert_allclose(mel(wav).numpy(), expected, atol=1e-6)


def kaldi_fbank(wav, mels):
    """Kaldi's defaults at 16 kHz: 25 ms Povey windows, 10 ms apart, pre-emphasis 0.97, 20 Hz to Nyquist."""
    frames = np.array([wav[start : start + 400] for start in range(0, len(wav) - 399, 160)])
    frames = frames - frames.mean(axis=1, keepdims=True)
    frames = frames - 0.97 * np.concatenate((frames[:, :1], frames[:, :-1]), axis=1)
    window = (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(400) / 399)) ** 0.85
    power = np.abs(np.fft.rfft(frames * window, 512)) ** 2
    edges = np.linspace(1127 * np.log(1 + 20 / 700), 1127 * np.log(1 + 8_000 / 700), mels + 2)[:, None]
    bins = 1127 * np.log(1 + np.arange(257) * (16_000 / 512) / 700)
    rise = (bins - edges[:-2]) / (edges[1:-1] - edges[:-2])
    fall = (edges[2:] - bins) / (edges[2:] - edges[1:-1])
    return np.log(np.maximum(power @ np.minimum(rise, fall).clip(0).T, np.finfo(np.float32).eps))


@pytest.mark.parametrize("samples", [400, 559, 560, 8_000])
def test_speaker_features_equal_numpy(samples):
    wav = noise(samples, seed=1)
    expected = kaldi_fbank(wav.numpy(), 80)
    features = speaker_features(wav, 80)
    assert features.shape == (1 + (samples - 400) // 160, 80)
    # Their filters are float32, with thin edges: a few 1e-5 of the logarithm.
    np.testing.assert_allclose(features.numpy(), expected - expected.mean(axis=0), atol=1e-4)


@pytest.mark.parametrize(("dtype", "limit"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_speaker_features_without_torchaudio_are_others(dtype, limit):
    features = SpeakerFeatures(80).to(dtype)
    # Ours is a float32 whatever the audio is in.
    features.window.copy_(torch.hann_window(400, periodic=False, dtype=dtype) ** 0.85)
    wavs = [noise(samples, seed, dtype) for seed, samples in enumerate((8_000, 400, 20_001))]
    wavs.append(torch.zeros(3_000, dtype=dtype))
    for wav, found in zip(wavs, features(wavs), strict=True):
        torch.testing.assert_close(found, speaker_features(wav, 80).to(dtype), rtol=0, atol=limit)


@pytest.mark.parametrize("make", [PromptMel, lambda: TokenizerMel(80), lambda: SpeakerFeatures(80)])
def test_a_loud_or_long_neighbour_changes_the_features(make):
    module = make().double()
    wavs = [noise(samples, seed) * loudness for seed, (samples, loudness) in
            enumerate(((5_000, 1.0), (721, 1e-6), (30_001, 100.0), (721, 1.0)))]  # fmt: skip
    batch = getattr(module, "batch", module)
    for wav, together in zip(wavs, batch(wavs), strict=True):
        torch.testing.assert_close(together, batch([wav])[0], rtol=0, atol=1e-12)


def test_a_voice_has_the_same_features_each_time():
    before = torch.get_rng_state()
    assert torch.equal(speaker_features(noise(4_000), 80), speaker_features(noise(4_000), 80))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("rate", [8_000, 11_025, 24_000, 44_100, 48_000])
def test_resampling_computes_its_filter_in_float64(rate):
    wav = noise(rate // 10 + 3, dtype=torch.float32)
    torchaudio = sys.modules["torchaudio"]
    ours = resample(wav, rate, 16_000)
    assert torch.equal(ours, torchaudio.transforms.Resample(rate, 16_000)(wav))
    assert not torch.equal(ours, torchaudio.functional.resample(wav, rate, 16_000))
    assert len(ours) == math.ceil(len(wav) * 16_000 / rate)


def test_the_filter_of_another_type_or_rate_is_used_again():
    wav = noise(3_000)
    first = [
        resample(wav.to(dtype), rate, 16_000) for dtype in (torch.float64, torch.float32) for rate in (8_000, 9_000)
    ]
    assert [len(sound) for sound in first] == [6_000, 5_334] * 2
    assert [sound.dtype for sound in first] == [torch.float64] * 2 + [torch.float32] * 2
    torch.testing.assert_close(first[2].double(), first[0], rtol=0, atol=1e-6)
    assert torch.equal(resample(wav, 8_000, 16_000), first[0])


def test_large_filters_stay_in_memory():
    audio._resampler.cache_clear()
    resample(noise(10), 1_023, 1_031)
    assert audio._resampler.cache_info().currsize == 0
    resample(noise(10), 8_000, 24_000)
    assert audio._resampler.cache_info().currsize == 1


def test_zeros_behind_a_clip_change_its_end():
    wav = noise(1_237)
    for rate in (8_000, 44_100):
        alone = resample(wav, rate, 16_000)
        padded = resample(torch.nn.functional.pad(wav, (0, 400))[None].expand(2, -1), rate, 16_000)
        torch.testing.assert_close(padded[1, : len(alone)], alone, rtol=0, atol=1e-12)


def test_a_resampled_tone_is_the_same_tone():
    seconds = torch.arange(44_100, dtype=torch.float64) / 44_100
    ours = resample(torch.sin(2 * math.pi * 440 * seconds), 44_100, 24_000)
    expected = torch.sin(2 * math.pi * 440 * torch.arange(24_000, dtype=torch.float64) / 24_000)
    assert ours.dtype == torch.float64
    assert (ours - expected)[500:-500].abs().max() < 1e-2


def test_equal_rates_change_nothing():
    wav = noise(100)
    assert resample(wav, 16_000, 16_000) is wav


@pytest.mark.parametrize("rate", [0, -8_000, 16_000.0, True, "16000"])
def test_a_rate_that_is_none_is_refused(rate):
    with pytest.raises(ValueError, match=r"from_rate is .* positive whole number"):
        resample(noise(100), rate, 16_000)


def test_rates_with_nothing_in_common_do_not_fill_the_memory():
    with pytest.raises(ValueError, match="from 44101 to 24000 Hz: their greatest common divisor is only 1"):
        resample(noise(100), 44_101, 24_000)


@pytest.mark.parametrize("make", [PromptMel, lambda: TokenizerMel(128), lambda: SpeakerFeatures(80)])
def test_buffers_are_real_under_meta_and_follow_the_module(make):
    before = torch.get_rng_state()
    with torch.device("meta"):
        module = make()
    assert torch.equal(torch.get_rng_state(), before)
    assert module.state_dict() == {}
    expected = dict(make().named_buffers())
    buffers = dict(module.named_buffers())
    assert set(buffers) == {"window", "filters"}
    for name, buffer in buffers.items():
        assert torch.equal(buffer, expected[name])
    assert {buffer.dtype for buffer in module.double().buffers()} == {torch.float64}
    assert {buffer.device.type for buffer in module.to("meta").buffers()} == {"meta"}


@pytest.mark.parametrize(
    ("wav", "message"),
    [
        ([0.0] * 1_000, "must be a 1-D tensor, not list"),
        (torch.zeros(1, 1_000), r"not of shape \(1, 1000\)"),
        (torch.zeros(1_000, dtype=torch.int16), "must be torch.float32 .* not torch.int16"),
        (torch.zeros(1_000, dtype=torch.float64), "not torch.float64"),
        (torch.zeros(720), r"too short: 720 samples \(30.0 ms at 24000 Hz\), where at least 721"),
        (torch.tensor([0.0] * 800 + [math.nan, math.inf]), r"2 value\(s\) .* first is nan at sample 800"),
    ],
)
def test_bad_audio_is_refused_with_what_is_wrong(wav, message):
    with pytest.raises(ValueError, match="clip 7 .*" + message):
        check_wav(wav, "clip 7", rate=24_000, minimum=721, dtype=torch.float32)


def test_the_shortest_prompt_is_the_shortest_that_works():
    assert torch.isfinite(PromptMel()(torch.zeros(PROMPT_MIN_SAMPLES))).all()
    with pytest.raises(ValueError, match="too short: 720 samples"):
        PromptMel()(torch.zeros(PROMPT_MIN_SAMPLES - 1))
