"""CosyVoice2's harmonic source against its formula, in batches and in pieces."""

import math

import pytest
import torch
import torch.nn.functional as F

from s3gen import S3GenConfig
from s3gen.interpolated_source import InterpolatedSource
from tests.conftest import relative_error

SAMPLES = 480
HARMONICS = 9


@pytest.fixture(scope="module")
def source():
    made = InterpolatedSource(S3GenConfig().vocoder)
    with torch.no_grad():
        made.linear.weight.copy_(torch.linspace(1.0, 0.2, HARMONICS)[None])
        made.linear.bias.fill_(0.01)
    return made.requires_grad_(False)


def pitch(frames, *, seed=0, voiced=True):
    f0 = 120 + 80 * torch.rand(1, frames, generator=torch.Generator().manual_seed(seed))
    if not voiced:
        f0[:, frames // 3 : frames // 2] = 0
        f0[:, frames // 2] = 9.9
    return f0


def by_samples(source, f0, noise, start):
    """As SineGen2 computes, sample by sample, in float64: `start` (B, H) turns are added to the first sample."""
    exact = f0.double().repeat_interleave(SAMPLES, dim=1)
    step = exact[:, None, :] * torch.arange(1, HARMONICS + 1, dtype=torch.float64)[None, :, None] / 24_000 % 1
    step[:, :, 0] += start
    per_frame = F.interpolate(step, scale_factor=1 / SAMPLES, mode="linear")
    phase = F.interpolate(per_frame.cumsum(2) * 2 * math.pi * SAMPLES, scale_factor=SAMPLES, mode="linear")
    voiced = (exact > source.voiced_threshold).double()[:, None]
    spread = voiced * source.noise_std + (1 - voiced) * source.amplitude / 3
    waves = source.amplitude * phase.sin() * voiced + spread * noise
    return torch.tanh(F.linear(waves.transpose(1, 2), source.linear.weight.double(), source.linear.bias.double()))[
        ..., 0
    ]


@pytest.mark.parametrize("frames", [1, 2, 3, 60])
@pytest.mark.parametrize("voiced", [True, False])
def test_the_phase_between_frames_runs_otherwise_than_in_the_reference(source, frames, voiced):
    f0 = pitch(frames, voiced=voiced)
    noise = torch.randn(1, HARMONICS, frames * SAMPLES, generator=torch.Generator().manual_seed(1))
    expected = by_samples(source, f0, noise.double(), torch.zeros(1, HARMONICS))
    assert relative_error(source(f0, noise=noise)[:, 0], expected) < 1e-5


def test_the_phase_drifts_over_half_a_minute(source):
    """The reference's own does: its float32 is 3e-3 from its float64 after 20 seconds."""
    f0 = pitch(1_500)
    noise = torch.zeros(1, HARMONICS, 1_500 * SAMPLES)
    expected = by_samples(source, f0, noise.double(), torch.zeros(1, HARMONICS))
    assert relative_error(source(f0, noise=noise)[:, 0], expected) < 1e-5


def test_the_starting_phases_that_the_reference_draws_are_heard(source):
    """They are not: its interpolation never reads the first sample. A quirk that is kept."""
    f0, noise = pitch(5), torch.zeros(1, HARMONICS, 5 * SAMPLES)
    drawn = torch.rand(1, HARMONICS, generator=torch.Generator().manual_seed(2)).double()
    none = torch.zeros(1, HARMONICS)
    assert torch.equal(by_samples(source, f0, noise, drawn), by_samples(source, f0, noise, none))
    assert not source.draw_phase([1, 2], f0).any()


def test_a_row_hears_its_batch_at_its_end(source):
    """F0 behind a row's end is 0, as the predictor leaves it: the last half frame must not run on."""
    rows = [pitch(frames, seed=frames) for frames in (9, 1, 4)]
    padded = torch.cat([F.pad(row, (0, 9 - row.shape[1])) for row in rows])
    together = source(padded, seed=[1, 2, 3])
    for place, row in enumerate(rows):
        alone = source(row, seed=place + 1)
        assert relative_error(together[place : place + 1, :, : alone.shape[2]], alone) < 1e-6


def test_a_stream_of_pieces_is_another_source_than_the_whole(source):
    f0 = torch.cat((pitch(40, voiced=False), pitch(40, seed=3)))
    whole = source(f0, seed=[5, 6])
    state, place, pieces = source.begin([5, 6], f0.device), 0, []
    for frames in (1, 7, 0, 25, 7):
        piece, state = source.extend(f0[:, place : place + frames + source.lookahead_frames], state, frames=frames)
        pieces.append(piece)
        place += frames
    assert place == f0.shape[1]
    # The turns at a border are wrapped once more: float64's rounding, seen through float32's.
    assert relative_error(torch.cat(pieces, dim=2), whole) < 1e-6
