"""What is kept of the reference on purpose, where the goldens cannot see it (docs/fidelity.md lists all of it)."""

from __future__ import annotations

import math

import pytest
import torch

from s3gen.encoder import relative_positions
from s3gen.estimator import sinusoids


def spectrum_of(model, log_magnitude: float) -> torch.Tensor:
    bins = model.mel2wav.config.istft_n_fft // 2 + 1
    phase = torch.randn(1, bins, 41, generator=torch.Generator().manual_seed(0))
    return torch.cat((torch.full_like(phase, log_magnitude), phase), dim=1)


def test_magnitudes_are_clipped_at_100(tiny_model):
    loud, louder, limit = (
        tiny_model.mel2wav._to_wave(spectrum_of(tiny_model, m), None) for m in (4.0, 9.0, math.log(100))
    )
    assert torch.allclose(louder, limit, rtol=1e-4, atol=1e-3)
    assert not torch.allclose(loud, limit, rtol=1e-2)


def test_samples_are_limited_to_0_99(tiny_model):
    vocoder = tiny_model.mel2wav
    mel = torch.randn(1, 80, 6, generator=torch.Generator().manual_seed(0))
    before = vocoder.conv_post.bias.clone()
    try:
        vocoder.conv_post.bias.add_(6.0)
        wave, _ = vocoder.inference(mel)
    finally:
        vocoder.conv_post.bias.copy_(before)
    assert float(wave.abs().max()) == pytest.approx(0.99)


def test_positions_and_times_are_float32_whatever_the_models_dtype():
    """In float64 the angles of far positions would differ by more than the tolerance."""
    single, double = (
        relative_positions(4000, 64, torch.zeros(1, dtype=dtype)) for dtype in (torch.float32, torch.float64)
    )
    assert torch.equal(double, single.double())
    exact = torch.sin(torch.tensor(3999.0, dtype=torch.float64) * math.exp(-2 * math.log(10_000.0) / 64))
    assert abs(float(single[0, 2] - exact)) > 1e-6
    assert sinusoids(torch.tensor(0.3, dtype=torch.float64), 320).dtype == torch.float64
