"""Pieces whose waves are joined."""

from __future__ import annotations

import math

import pytest
import torch

from s3gen.constants import SAMPLE_RATE, SAMPLES_PER_TOKEN
from s3gen.crossfade import cross_fade, join
from s3gen.splitting import pieces

HALF = SAMPLES_PER_TOKEN // 2


def noise(count: int, seed: int) -> torch.Tensor:
    return torch.randn(count, generator=torch.Generator().manual_seed(seed)) / 10


def test_the_joined_wave_is_shifted_or_has_another_length():
    """Pieces cut out of one wave are that wave again."""
    whole = noise(100 * SAMPLES_PER_TOKEN, 1)
    parts = pieces(100, [30, 37, 80])
    waves = [whole[part.start * SAMPLES_PER_TOKEN : part.end * SAMPLES_PER_TOKEN] for part in parts]
    joined = join(parts, waves)
    assert len(joined) == len(whole)
    assert torch.allclose(joined, whole, atol=1e-6)


def test_a_sample_far_from_the_cuts_is_mixed():
    parts = pieces(90, [40])
    waves = [noise((part.end - part.start) * SAMPLES_PER_TOKEN, seed) for seed, part in enumerate(parts)]
    joined, cut = join(parts, waves), 40 * SAMPLES_PER_TOKEN
    assert torch.equal(joined[: cut - HALF], waves[0][: cut - HALF])
    begin = (40 - parts[1].start) * SAMPLES_PER_TOKEN + HALF
    assert torch.equal(joined[cut + HALF :], waves[1][begin:])


@pytest.mark.parametrize("common", [0.0, 0.5, 0.9, 1.0])
def test_the_joint_is_heard_as_a_dip_or_a_bump(common):
    """Whatever the two waves have in common, the power on the way is that of the waves; averaged over many joints."""
    shared, rest = noise(200 * SAMPLES_PER_TOKEN, 1), noise(400 * SAMPLES_PER_TOKEN, 2)
    own = rest.view(2, -1)
    before, after = (common**0.5 * shared + (1 - common) ** 0.5 * each for each in own)
    power = torch.stack(
        [cross_fade(*pair).square() for pair in zip(before.view(200, -1), after.view(200, -1), strict=True)]
    )
    level = power.mean(0).view(8, -1).mean(1) / shared.square().mean()
    # A mean over 24,000 samples has an error of 1 %; straight lines make 0.5 of what has nothing in common, quarter
    # circles 2 of what is equal.
    assert float((level - 1).abs().max()) < 0.06


def test_the_joint_of_opposite_waves_is_silence_or_louder_than_both():
    wave = noise(SAMPLES_PER_TOKEN, 3)
    joined = cross_fade(wave, -wave)
    assert joined.isfinite().all()
    assert float(joined.abs().max()) <= float(wave.abs().max())
    assert float(joined[:50].norm() / wave[:50].norm()) > 0.9


def test_the_joint_of_digital_silence_is_not_a_number():
    nothing = torch.zeros(SAMPLES_PER_TOKEN)
    assert torch.equal(cross_fade(nothing, nothing), nothing)


def test_a_piece_of_a_wrong_length_is_joined():
    parts = pieces(90, [40])
    waves = [torch.zeros((part.end - part.start) * SAMPLES_PER_TOKEN) for part in parts]
    with pytest.raises(ValueError, match=f"{len(waves[1]) - 1} samples for a piece of 62 tokens"):
        join(parts, [waves[0], waves[1][:-1]])


@pytest.mark.parametrize("turn", [0.0, 0.1, 0.25, 0.5])
def test_a_joint_in_a_vowel_clicks(turn):
    """A tone that goes on at another phase: the second difference, which is what a click is made of, stays as small."""
    time = torch.arange(SAMPLES_PER_TOKEN * 4, dtype=torch.float64)
    tones = [0.3 * torch.sin(2 * math.pi * (220 / SAMPLE_RATE * time + phase)) for phase in (0.0, turn)]
    middle = slice(SAMPLES_PER_TOKEN, 2 * SAMPLES_PER_TOKEN)
    joint = cross_fade(*(tone[middle] for tone in tones))
    whole = torch.cat((tones[0][: middle.start], joint, tones[1][middle.stop :]))
    bends = whole.diff().diff().square()
    elsewhere = bends[: middle.start - 2].mean()
    assert float(bends[middle.start - 2 : middle.stop].mean() / elsewhere) < 1.25
    assert float(bends.max() / bends[: middle.start - 2].max()) < 2.5
