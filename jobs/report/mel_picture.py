"""Mel spectrograms as small pictures.

They show what the ear may have missed, up to half the audio's rate: noise above the model's own 8 kHz,
clicks as upright lines, holes. Time goes to the right, pitch up; the loudest spot is the lightest.

Shape letters: L samples, T columns, M mel bins.
"""

from __future__ import annotations

import struct
import zlib

import numpy as np
import numpy.typing as npt

from jobs.audio.audiofile import Samples
from s3gen.constants import MEL_BINS, SAMPLE_RATE

WINDOW = 1_024  # samples at 24 kHz, and the FFT's size
COLUMN_RATE = 100  # columns per second, of clips that are not too wide with it
MAX_COLUMNS = 500
RANGE_DB = 70.0  # below the loudest spot, which is white; what is further down is black
QUIETEST_TOP_DB = -50.0  # so that digital silence is black, and not white
SHADES = 64  # more cost bytes and are not seen
# Red, green and blue of the ramp from black to white, at equal distances.
RAMP = ((8, 8, 20), (44, 22, 88), (112, 30, 112), (186, 50, 92), (240, 104, 56), (252, 176, 76), (255, 246, 214))


def mel_picture(samples: Samples, rate: int) -> bytes:
    """A PNG file, ``MEL_BINS`` high and at most ``MAX_COLUMNS`` wide.

    Args:
        samples: (L,) float32, full scale +-1; L may be 0.
        rate: Hz.
    """
    levels = _levels(samples, rate)
    top = max(float(levels.max()), QUIETEST_TOP_DB)
    shades = np.clip((levels - top) / RANGE_DB + 1, 0, 1) * (SHADES - 1)
    return _png(np.rint(shades).astype(np.uint8)[::-1])


def _levels(samples: Samples, rate: int) -> npt.NDArray[np.float64]:
    """(M, T) in dB, lowest bin first."""
    # Lazily: it brings torch, and most of the command needs none.
    from s3gen.audio import mel_filters

    window = WINDOW * rate // SAMPLE_RATE
    hop = max(rate // COLUMN_RATE, -(-len(samples) // MAX_COLUMNS))
    columns = max(1, -(-len(samples) // hop))
    padded = np.zeros((columns - 1) * hop + window, np.float32)
    start = window // 2
    kept = samples[: len(padded) - start]
    padded[start : start + len(kept)] = kept
    frames = np.lib.stride_tricks.sliding_window_view(padded, window)[::hop] * np.hanning(window)
    power = np.square(np.abs(np.fft.rfft(frames))) / np.square(window / 4)  # a sine at full scale has 1
    filters = mel_filters(rate, window, MEL_BINS, rate / 2).numpy().astype(np.float64)
    filters /= filters.sum(axis=1, keepdims=True)
    return 10 * np.log10(np.maximum(filters @ power.T, 1e-12))


def _png(shades: npt.NDArray[np.uint8]) -> bytes:
    """An 8-bit palette PNG of (height, width) indices into the ramp."""
    height, width = shades.shape
    lines = np.zeros((height, width + 1), np.uint8)  # each begins with its filter, 0: none
    lines[:, 1:] = shades
    at = np.linspace(0, len(RAMP) - 1, SHADES)
    ramp = np.stack([np.interp(at, range(len(RAMP)), channel) for channel in zip(*RAMP, strict=True)], axis=1)
    head = struct.pack(">IIBBBBB", width, height, 8, 3, 0, 0, 0)
    chunks = (
        (b"IHDR", head),
        (b"PLTE", np.rint(ramp).astype(np.uint8).tobytes()),
        (b"IDAT", zlib.compress(lines.tobytes(), 9)),
        (b"IEND", b""),
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(kind, data) for kind, data in chunks)


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
