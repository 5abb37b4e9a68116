"""Audio files: reading whatever libsndfile reads, and encoding what was made.

Shape letters: L samples, C channels.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import IO, NamedTuple

import numpy as np
import numpy.typing as npt
import soundfile

from jobs.errors import InputError
from s3gen.constants import SAMPLE_RATE

Samples = npt.NDArray[np.float32]

# Every file suffix under which libsndfile's formats go about.
READABLE_SUFFIXES = frozenset(
    {"aif", "aifc", "aiff", "au", "avr", "caf", "flac", "htk", "ircam", "m4w", "mat", "mp3", "nist", "oga", "ogg"}
    | {"opus", "paf", "pvf", "rf64", "sd2", "snd", "sph", "svx", "voc", "w64", "wav", "wave", "wve", "xi"}
)


class Encoding(NamedTuple):
    """A container and what is in it, as libsndfile calls them; and what a sample is in it, for people."""

    container: str
    subtype: str
    description: str


# What a job may store, by its configuration key `audio`; the keys are the files' suffixes, too.
ENCODINGS = {
    "flac": Encoding("FLAC", "PCM_16", "16 bit"),
    "wav": Encoding("WAV", "PCM_16", "16 bit"),
    "ogg": Encoding("OGG", "OPUS", "Opus"),
    "mp3": Encoding("MP3", "MPEG_LAYER_III", "MPEG layer III"),
}

# Hz. No recording of a voice is outside; a header that claims it would decide how much memory is asked for.
MIN_RATE, MAX_RATE = 1_000, 768_000
READ_SAMPLES = 1 << 20  # of all channels together, at a time

PCM16_SCALE = 2**15  # full scale of 16-bit PCM; reading divides by the same number


class UnreadableAudio(ValueError):
    """libsndfile cannot make sense of a file."""


def read_audio(
    file: IO[bytes], seconds: float | None = None, *, most: Callable[[int, int], int] | None = None
) -> tuple[Samples, int]:
    """The samples of an audio file, as one channel.

    Args:
        file: a seekable binary file at its beginning, in any format, rate, width and channel count.
        seconds: read no more than this from the start; None reads everything.
        most: in place of ``seconds``: how many samples to read, from the number that the file claims and its rate.

    Returns:
        (L,) float32, the mean of the channels, full scale +-1; and the file's rate in Hz.

    Raises:
        UnreadableAudio: not audio that libsndfile reads, torn, or of a rate outside of 1 to 768 kHz.
    """
    try:
        with soundfile.SoundFile(file) as sound:
            rate = int(sound.samplerate)
            if not MIN_RATE <= rate <= MAX_RATE:
                raise UnreadableAudio(f"it claims a rate of {rate} Hz; {MIN_RATE} to {MAX_RATE} are read")
            if most is not None:
                return _read_mono(sound, most(sound.frames, rate)), rate
            return _read_mono(sound, None if seconds is None else round(seconds * rate)), rate
    except UnreadableAudio:
        raise
    except (soundfile.LibsndfileError, RuntimeError, ValueError, EOFError, MemoryError) as error:
        raise UnreadableAudio(f"libsndfile cannot read it: {_reason(error)}") from error


def _read_mono(sound: soundfile.SoundFile, most: int | None) -> Samples:
    """The first frames of a file, block by block: memory follows from what is there, not from what a header claims."""
    block = max(1, READ_SAMPLES // sound.channels)
    parts: list[Samples] = [np.zeros(0, np.float32)]
    left = most
    while left is None or left > 0:
        frames = sound.read(block if left is None else min(block, left), dtype="float32", always_2d=True)  # (L, C)
        if not len(frames):
            break
        left = None if left is None else left - len(frames)
        mono = frames[:, 0] if sound.channels == 1 else frames.mean(axis=1, dtype=np.float64).astype(np.float32)
        parts.append(mono)
    return np.concatenate(parts)


def encode(samples: Samples, audio: str, rate: int = SAMPLE_RATE) -> bytes:
    """A mono file of 16-bit PCM, or of what a codec makes of that.

    Equal samples give equal bytes, but for `ogg`: of that they decode to equal samples, since libsndfile puts a random
    number into each file. Whatever the encoding is, as many samples come out as went in.

    Args:
        samples: (L,) float32, finite, full scale +-1; rounded to the nearest step, clipped to the range.
        audio: a key of `ENCODINGS`.
        rate: Hz.

    Raises:
        ValueError: an unknown encoding, or samples that are not finite, which have no PCM value.
    """
    if audio not in ENCODINGS:
        raise ValueError(f"audio: {audio!r} is not one of {', '.join(ENCODINGS)}")
    if not np.isfinite(samples).all():
        raise ValueError("samples that are not finite cannot be stored")
    # Exact in float32: the scale is a power of two. Clipped before, so that nothing overflows.
    scaled = np.rint(np.clip(samples, -1, 1) * np.float32(PCM16_SCALE))
    pcm = np.minimum(scaled, PCM16_SCALE - 1).astype(np.int16)
    encoding = ENCODINGS[audio]
    file = io.BytesIO()
    soundfile.write(file, pcm, rate, format=encoding.container, subtype=encoding.subtype)
    return file.getvalue()


def check_encoder(audio: str) -> None:
    """Returns where this machine's libsndfile writes an encoding.

    Raises:
        InputError: it does not.
    """
    encoding = ENCODINGS[audio]
    if not soundfile.check_format(encoding.container, encoding.subtype):
        raise InputError(
            f"audio: {audio} cannot be written here: libsndfile {soundfile.__libsndfile_version__} has no "
            f"{encoding.description}; PyPI's soundfile brings one that has; or give flac or wav"
        )


def _reason(error: Exception) -> str:
    # libsndfile's own sentence, without the file object's repr that soundfile puts in front.
    return str(getattr(error, "error_string", error)).strip() or type(error).__name__
