"""Audio files in and out."""

from __future__ import annotations

import io

import numpy as np
import pytest
import soundfile

from jobs.audio.audiofile import ENCODINGS, READABLE_SUFFIXES, UnreadableAudio, check_encoder, encode, read_audio
from jobs.errors import InputError
from tests.conftest import speech_like


def _file(samples: np.ndarray, rate: int, kind: str, subtype: str) -> io.BytesIO:
    file = io.BytesIO()
    soundfile.write(file, samples, rate, format=kind, subtype=subtype)
    file.seek(0)
    return file


@pytest.mark.parametrize(
    ("kind", "subtype", "tolerance"),
    [
        ("WAV", "PCM_U8", 2e-2),
        ("WAV", "PCM_16", 1e-4),
        ("WAV", "PCM_24", 1e-6),
        ("WAV", "FLOAT", 0),
        ("WAV", "DOUBLE", 1e-7),
        ("FLAC", "PCM_24", 1e-6),
        ("AIFF", "PCM_16", 1e-4),
        ("AU", "ULAW", 5e-2),
        ("OGG", "VORBIS", 0.3),
        ("MP3", "MPEG_LAYER_III", 0.3),
    ],
)
@pytest.mark.parametrize("rate", [8_000, 44_100])
def test_every_width_and_container_reads_as_float32(kind: str, subtype: str, tolerance: float, rate: int) -> None:
    wave = (0.5 * np.sin(np.arange(rate) / 20)).astype(np.float32)
    samples, found = read_audio(_file(wave, rate, kind, subtype))
    assert samples.dtype == np.float32
    assert found == rate
    assert len(samples) >= len(wave)
    assert np.abs(samples[: len(wave)] - wave).max() <= tolerance


def test_stereo_becomes_the_mean_and_not_the_left_channel() -> None:
    stereo = np.stack([np.full(100, 0.5), np.full(100, -0.25)], axis=1)
    samples, _ = read_audio(_file(stereo, 24_000, "WAV", "FLOAT"))
    np.testing.assert_allclose(samples, 0.125)


def test_a_long_clip_is_cut_before_it_fills_the_memory() -> None:
    samples, _ = read_audio(_file(np.zeros(80_000), 8_000, "WAV", "PCM_16"), seconds=2.5)
    assert len(samples) == 20_000


@pytest.mark.parametrize("data", [b"", b"RIFF", b"not audio at all" * 100, b"\0" * 5000])
def test_what_is_no_audio_says_so_and_does_not_crash(data: bytes) -> None:
    with pytest.raises(UnreadableAudio, match="libsndfile"):
        read_audio(io.BytesIO(data))


@pytest.mark.parametrize("audio", ["flac", "wav"])
def test_stored_samples_are_rounded_and_clipped_and_nothing_wraps(audio: str) -> None:
    steps = np.array([0, 1, -1, 32767, -32768, 100.4, 100.6, -100.6, 40_000, -40_000, 1e9])
    pcm, rate = soundfile.read(io.BytesIO(encode((steps / 2**15).astype(np.float32), audio)), dtype="int16")
    assert rate == 24_000
    assert pcm.tolist() == [0, 1, -1, 32767, -32768, 100, 101, -101, 32767, -32768, 32767]


@pytest.mark.parametrize("audio", ["flac", "wav", "mp3"])
def test_equal_samples_give_equal_bytes(audio: str) -> None:
    wave = np.random.default_rng(0).uniform(-1, 1, 10_000).astype(np.float32)
    assert encode(wave, audio) == encode(wave.copy(), audio)


def test_ogg_of_equal_samples_decodes_to_something_else() -> None:
    wave = np.random.default_rng(0).uniform(-1, 1, 10_000).astype(np.float32)
    one, other = encode(wave, "ogg"), encode(wave.copy(), "ogg")
    assert len(one) == len(other)
    np.testing.assert_array_equal(read_audio(io.BytesIO(one))[0], read_audio(io.BytesIO(other))[0])


@pytest.mark.parametrize("rate", [24_000, 16_000, 8_000])
@pytest.mark.parametrize("audio", ["ogg", "mp3"])
def test_a_codec_s_delay_or_its_padding_stays_in_what_is_decoded(audio: str, rate: int) -> None:
    """Lengths on both sides of the codecs' blocks, and those of tokens; noise, and silence."""
    noise = np.random.default_rng(0).uniform(-0.9, 0.9, 12 * 960).astype(np.float32)
    for samples in (1, 2, 239, 480, 481, 575, 576, 577, 960, 1151, 1152, 1153, *range(1_920, 12 * 960, 960)):
        for wave in (noise[:samples], np.zeros(samples, np.float32)):
            data = encode(wave, audio, rate)
            decoded, found = read_audio(io.BytesIO(data))
            assert (len(decoded), found, soundfile.info(io.BytesIO(data)).frames) == (samples, rate, samples)


@pytest.mark.parametrize(("audio", "like"), [("ogg", 0.9), ("mp3", 0.99)])
def test_lossy_audio_is_late_or_another_sound(audio: str, like: float) -> None:
    wave = speech_like(2.0, 24_000).numpy()
    decoded, _ = read_audio(io.BytesIO(encode(wave, audio)))
    products = [float(np.dot(np.roll(decoded, -shift), wave)) for shift in range(-50, 51)]
    assert abs(int(np.argmax(products)) - 50) <= 1
    assert max(products) > like * np.linalg.norm(decoded) * np.linalg.norm(wave)


def test_an_encoding_that_libsndfile_lacks_fails_row_by_row(monkeypatch: pytest.MonkeyPatch) -> None:
    for audio in ENCODINGS:
        check_encoder(audio)
    monkeypatch.setattr("soundfile.check_format", lambda container, subtype: subtype == "PCM_16")
    check_encoder("flac")
    with pytest.raises(InputError, match=r"^audio: ogg cannot be written here: .* no Opus; .* give flac or wav$"):
        check_encoder("ogg")


def test_no_sample_is_a_step_off_what_exact_arithmetic_gives() -> None:
    halves = (np.arange(-40_000, 40_000) + 0.5) / 2**15
    drawn = np.random.default_rng(0).standard_normal(100_000) / 3
    edges = [-1.0, 1.0, np.nextafter(1, 0), 1e30, -1e30, 1e-45, -0.0]
    samples = np.concatenate([halves, drawn, edges]).astype(np.float32)
    want = np.clip(np.rint(samples.astype(np.float64) * 2**15), -(2**15), 2**15 - 1).astype(np.int16)
    got, _ = soundfile.read(io.BytesIO(encode(samples, "wav")), dtype="int16")
    np.testing.assert_array_equal(got, want)


def test_nan_is_never_stored_as_some_number() -> None:
    with pytest.raises(ValueError, match="finite"):
        encode(np.array([0.0, np.nan], np.float32), "flac")
    with pytest.raises(ValueError, match="'aiff'"):
        encode(np.zeros(10, np.float32), "aiff")


def test_no_format_of_libsndfile_is_overlooked_in_a_folder() -> None:
    unlike_their_suffix = {"RAW", "MAT4", "MAT5", "MPC2K", "SDS", "WAVEX"}  # raw has no header; the rest go as others
    formats = {name.lower() for name in soundfile.available_formats() if name not in unlike_their_suffix}
    assert formats <= READABLE_SUFFIXES
