"""Counter-based noise: a value is a function of (seed, stream, frame, channel), and of nothing else.

Philox 4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011) on int64 tensors, so that CPU
and CUDA draw the same integers. The key is the 64-bit seed; the counter is (frame, block, stream, 0), and every
counter gives four numbers, which are channels 4 * block .. 4 * block + 3 of the frame. A longer utterance therefore
begins like a shorter one, a stream may draw any frames on their own, and a row's noise does not know its batch.

Changing anything here changes every sample that was ever made with a seed.

Shape letters: B rows, F frames, C channels, K blocks of four channels.
"""

from __future__ import annotations

import enum
import math
import operator
from collections.abc import Sequence
from typing import SupportsIndex

import numpy as np
import torch
from torch import Tensor

from s3gen.ragged import on_device

_ROUNDS = 10
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
_WORD = 0xFFFFFFFF
_LANES = 4  # 32-bit words that one counter gives
SEED_RANGE = (-(2**63), 2**64)  # half open; a seed and its value modulo 2 ** 64 are the same seed


class Stream(enum.IntEnum):
    """What the noise is for. The numbers are part of the format."""

    FLOW = 0  # one frame = one mel frame, channels = mel bins
    PHASE = 1  # frame 0 alone, channels = harmonics
    SOURCE = 2  # one frame = one mel frame, channels = samples x harmonics, sample-major


def normal(
    seeds: Sequence[int],
    stream: Stream,
    frames: int,
    channels: int,
    *,
    device: torch.device,
    start: int | Sequence[int] = 0,
) -> Tensor:
    """Standard normal noise, frame-major.

    Args:
        seeds: B seeds in `SEED_RANGE`.
        stream: which of an utterance's noises.
        frames: F, from frame `start` on, one for all rows or one each.
        channels: C per frame.
        device: where it is drawn; the integers behind it are the same everywhere.

    Returns:
        (B, F, C) float32.
    """
    words = _words(seeds, stream, start, frames, -(-channels // _LANES), device)  # (B, F, K, 4)
    # Box-Muller in float64: the logarithm and cosine of different devices then agree after rounding to float32.
    radius = torch.sqrt(-2.0 * torch.log(_open_unit(words[..., 0::2])))
    angle = 2.0 * math.pi * _open_unit(words[..., 1::2])
    pairs = torch.stack((radius * torch.cos(angle), radius * torch.sin(angle)), dim=-1)
    return pairs.to(torch.float32).flatten(2)[..., :channels]


def uniform(
    seeds: Sequence[int],
    stream: Stream,
    frames: int,
    channels: int,
    *,
    device: torch.device,
    start: int | Sequence[int] = 0,
) -> Tensor:
    """Uniform noise in (0, 1), frame-major: (B, F, C) float32. Arguments as for `normal`."""
    words = _words(seeds, stream, start, frames, -(-channels // _LANES), device)
    return _open_unit(words).to(torch.float32).flatten(2)[..., :channels]


def philox(counter: Sequence[Tensor], key: Sequence[Tensor]) -> list[Tensor]:
    """Philox 4x32-10: four counter words and two key words (int64 tensors of 32-bit values) to four random words."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(_ROUNDS):
        high0, low0 = _multiply(c0, _MULTIPLIERS[0])
        high1, low1 = _multiply(c2, _MULTIPLIERS[1])
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = (k0 + _KEY_STEPS[0]) & _WORD, (k1 + _KEY_STEPS[1]) & _WORD
    return [c0, c1, c2, c3]


def _multiply(word: Tensor, multiplier: int) -> tuple[Tensor, Tensor]:
    # The product wraps into the sign bit, and the arithmetic shift smears it: the mask takes that off again.
    product = word * multiplier
    return (product >> 32) & _WORD, product & _WORD


def _words(
    seeds: Sequence[int], stream: Stream, start: int | Sequence[int], frames: int, blocks: int, device: torch.device
) -> Tensor:
    low, high = _key_words(seeds, device)  # (B, 1, 1) each
    first = start if isinstance(start, int) else on_device(torch.tensor(start), device)[:, None, None]
    frame = torch.arange(frames, dtype=torch.int64, device=device)[None, :, None] + first
    block = torch.arange(blocks, dtype=torch.int64, device=device)[None, None, :]
    counter = [frame, block, torch.full_like(low, int(stream)), torch.zeros_like(low)]
    return torch.stack(philox(counter, (low, high)), dim=-1)


def _key_words(seeds: Sequence[int], device: torch.device) -> tuple[Tensor, Tensor]:
    seeds = [check_seed(seed) for seed in seeds]
    words = torch.tensor([[seed & _WORD for seed in seeds], [(seed >> 32) & _WORD for seed in seeds]])
    low, high = on_device(words, device)[:, :, None, None]
    return low, high


def check_seed(seed: SupportsIndex) -> int:
    """The seed as a Python integer.

    Raises:
        ValueError: not an integer (of Python's or numpy's) in `SEED_RANGE`.
    """
    try:
        value = operator.index(seed)
    except TypeError:
        value = SEED_RANGE[1]
    if isinstance(seed, bool) or not SEED_RANGE[0] <= value < SEED_RANGE[1]:
        raise ValueError(f"seed is {seed!r}, but must be an integer from -2**63 to 2**64 - 1")
    return value


def per_row(seed: SupportsIndex | Sequence[int], rows: int) -> list[int]:
    """One checked seed per row, from one for all rows or one each.

    Raises:
        ValueError: as `check_seed`, or another number of seeds than rows.
    """
    seeds = list(seed) if isinstance(seed, Sequence | np.ndarray) else [seed] * rows
    if len(seeds) != rows:
        raise ValueError(f"{len(seeds)} seeds were given for {rows} rows")
    return [check_seed(each) for each in seeds]


def _open_unit(words: Tensor) -> Tensor:
    # Never 0 (its logarithm) and never 1: the middle of each of 2 ** 32 cells.
    return (words.to(torch.float64) + 0.5) * 2.0**-32
