"""Floating-point operations of the model's parts, counted from dimensions and row lengths.

What the mathematics asks for, a multiplication and an addition being two: linear layers and convolutions 2 x weights x
positions, attention 4 x positions squared x width. Padding is no work, and neither is what a faster path leaves out of
it, so that two paths are measured by one yardstick. Element-wise functions and the vocoder's Fourier transforms are
left out: less than a hundredth of the whole.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from s3gen import S3GenConfig
from s3gen.config import EncoderConfig, EstimatorConfig, HiFTNetConfig

_TAPS = 3  # of every convolution of the estimator and of the F0 predictor


class Row(NamedTuple):
    """An utterance in mel frames: those of its prompt, and those that are made."""

    prompt: int
    made: int


def of_rows(config: S3GenConfig, rows: Sequence[Row], steps: int) -> float:
    """Tokens to waves in so many solver steps."""
    return sum(
        encoder(config, row.prompt + row.made) + steps * step(config, row.prompt + row.made) + vocoder(config, row.made)
        for row in rows
    )


def step(config: S3GenConfig, frames: int) -> float:
    """One step of the solver for a row of so many frames, both halves of guidance."""
    return (1 if config.meanflow else 2) * estimator(config.flow.estimator, frames)


def estimator(config: EstimatorConfig, frames: int) -> float:
    """One evaluation of the velocity for a row of so many frames."""
    channels, inner = config.channels, config.heads * config.head_dim
    block = 4 * channels * inner + 8 * channels**2
    stages = 2 + config.mid_blocks
    inputs = config.in_channels + channels * config.mid_blocks + 2 * channels  # of all residual blocks
    resnets = (_TAPS + 1) * inputs * channels + stages * _TAPS * channels**2
    ends = 3 * _TAPS * channels**2 + channels * config.out_channels
    weights = resnets + stages * config.blocks * block + ends
    return 2 * weights * frames + stages * config.blocks * 4 * frames**2 * inner


def encoder(config: S3GenConfig, frames: int) -> float:
    """Joined tokens to mu for a row of so many frames."""
    sizes = config.flow.encoder
    dim, tokens = sizes.dim, frames // sizes.stride
    lookahead = (sizes.lookahead + 1 + _TAPS) * dim**2
    entry = 2 * tokens * (sizes.input_dim * dim + lookahead)
    upsample = 2 * frames * ((2 * sizes.stride + 1) * dim**2 + dim**2 + dim * config.mel_bins)
    blocks = sizes.blocks * _encoder_block(sizes, tokens) + sizes.up_blocks * _encoder_block(sizes, frames)
    return entry + upsample + blocks


def _encoder_block(sizes: EncoderConfig, length: int) -> float:
    dim, distances = sizes.dim, 2 * length - 1
    linear = 2 * length * (4 * dim**2 + 2 * dim * sizes.hidden_dim) + 2 * distances * dim**2
    return linear + 2 * length * distances * dim + 4 * length**2 * dim


def vocoder(config: S3GenConfig, frames: int) -> float:
    """Mel to wave for a row of so many frames, F0 predictor included."""
    sizes = config.vocoder
    bins = sizes.istft_n_fft + 2
    total = f0(sizes, frames) + _conv(sizes.in_channels, sizes.base_channels, 7, frames)
    length, last = frames, len(sizes.upsample_rates) - 1
    for stage, (rate, kernel) in enumerate(zip(sizes.upsample_rates, sizes.upsample_kernel_sizes, strict=True)):
        channels = sizes.base_channels // 2 ** (stage + 1)
        total += _conv(2 * channels, channels, kernel, length)  # transposed: its weights meet every position they read
        length = length * rate + (stage == last)
        down = math.prod(sizes.upsample_rates[stage + 1 :])
        total += _conv(bins, channels, 1 if down == 1 else 2 * down, length)
        total += _resblock(channels, sizes.source_resblock_kernel_sizes[stage], _pairs(sizes, stage), length)
        for resblock, dilations in zip(sizes.resblock_kernel_sizes, sizes.resblock_dilation_sizes, strict=True):
            total += _resblock(channels, resblock, len(dilations), length)
    return total + _conv(sizes.base_channels // 2 ** (last + 1), bins, 7, length)


def f0(sizes: HiFTNetConfig, frames: int) -> float:
    """The F0 predictor alone; it computes in float64."""
    channels = sizes.f0_predictor_cond_channels
    return 2 * frames * (_TAPS * channels * (sizes.in_channels + 4 * channels) + channels)


def _pairs(sizes: HiFTNetConfig, stage: int) -> int:
    return len(sizes.source_resblock_dilation_sizes[stage])


def _resblock(channels: int, kernel: int, pairs: int, length: int) -> float:
    return 2 * pairs * _conv(channels, channels, kernel, length)


def _conv(inputs: int, outputs: int, kernel: int, positions: int) -> float:
    return 2 * inputs * outputs * kernel * positions
