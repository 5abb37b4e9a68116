"""The harmonic source: F0 to the signal that the vocoder shapes into a voice.

Reference: chatterbox-tts 0.1.7, ``models/s3gen/hifigan.py`` (SineGen, SourceModuleHnNSF).

Shape letters: B rows, T mel frames, H harmonics (fundamental included), S samples.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor, nn

from s3gen import noise as noises
from s3gen.config import HiFTNetConfig
from s3gen.noise import Stream
from s3gen.precision import strict_float32


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SourceState:
    """Where a source goes on: at the border before frame `start` of B rows.

    Attributes:
        seeds: B seeds, of the starting phases and the noise.
        start: frames before that border; noise is drawn by it.
        turns: (B, H) float64 in 0 .. 1, how far every harmonic has turned there, its starting phase left out.
    """

    seeds: tuple[int, ...]
    start: int
    turns: Tensor


class HarmonicSource(nn.Module):
    """Sines at F0 and its harmonics where it is voiced, noise elsewhere, merged to one signal.

    The reference sums the phase over samples in float32. Here it is summed over mel frames in float64 and wrapped,
    which is a hundred times closer to the exact phase and does not depend on the order of a device's summation.
    """

    lookahead_frames: ClassVar[int] = 0  # to the right of a frame, whose F0 its samples depend on

    def __init__(self, config: HiFTNetConfig) -> None:
        super().__init__()
        self.harmonics = config.nb_harmonics + 1
        self.frame_samples = config.frame_samples
        self.sampling_rate = config.sampling_rate
        self.amplitude = config.nsf_alpha
        self.noise_std = config.nsf_sigma
        self.voiced_threshold = config.nsf_voiced_threshold
        self.linear = nn.Linear(self.harmonics, 1)

    def forward(
        self,
        f0: Tensor,
        *,
        phase: Tensor | None = None,
        noise: Tensor | None = None,
        seed: int | Sequence[int] = 0,
        start: int | Sequence[int] = 0,
    ) -> Tensor:
        """The source signal.

        Args:
            f0: (B, T) in Hz; a frame is voiced above the configured threshold.
            phase: (B, H, 1) in radians at the start, that of the fundamental 0; drawn from `seed` when None.
            noise: (B, H, S) standard normal, S = frame samples x T; drawn from `seed` when None.
            seed: one for all rows, or one each.
            start: frames of the same utterance that come before, one for all rows or one each; noise is drawn by it.

        Returns:
            (B, 1, S) within -1 .. 1.
        """
        seeds = noises.per_row(seed, len(f0))
        phase = self.draw_phase(seeds, f0) if phase is None else phase.to(f0)
        noise = self.draw_noise(seeds, f0, start=start) if noise is None else noise.to(f0)
        samples = f0.shape[1] * self.frame_samples
        if phase.shape != (len(f0), self.harmonics, 1) or noise.shape != (len(f0), self.harmonics, samples):
            raise ValueError(
                f"phase {tuple(phase.shape)} and noise {tuple(noise.shape)} must be "
                f"{(len(f0), self.harmonics, 1)} and {(len(f0), self.harmonics, samples)} for F0 {tuple(f0.shape)}"
            )
        turns, _ = self._turns(f0, f0.shape[1], self.begin(seeds, f0.device))
        return self._signal(f0, turns, phase, noise)

    def begin(self, seeds: Sequence[int], device: torch.device) -> SourceState:
        """The state before the first frame of B rows, from their seeds."""
        turns = torch.zeros(len(seeds), self.harmonics, dtype=_exact(device), device=device)
        return SourceState(seeds=tuple(seeds), start=0, turns=turns)

    def extend(self, f0: Tensor, state: SourceState, *, frames: int) -> tuple[Tensor, SourceState]:
        """The signal of the next `frames` frames, as `forward` makes it of the whole row, to rounding.

        Args:
            f0: (B, at least `frames`) in Hz from frame `state.start` on. What follows those frames is read as far as
                `lookahead_frames`; where the row ends, it is left out or 0.
            state: of `begin`, or of the call before.
            frames: how many to make.

        Returns:
            (B, 1, frames x frame samples), and the state behind them.
        """
        if not 0 <= frames <= f0.shape[1]:
            raise ValueError(f"frames is {frames}, but the F0 {tuple(f0.shape)} holds {f0.shape[1]}")
        made = f0[:, :frames]
        turns, end = self._turns(f0, frames, state)
        signal = self._signal(
            made, turns, self.draw_phase(state.seeds, made), self.draw_noise(state.seeds, made, start=state.start)
        )
        return signal, replace(state, start=state.start + frames, turns=end)

    def draw_phase(self, seeds: Sequence[int], like: Tensor) -> Tensor:
        """Starting phases (B, H, 1) in -pi .. pi, that of the fundamental 0."""
        drawn = noises.uniform(seeds, Stream.PHASE, 1, self.harmonics, device=like.device)[:, 0, :, None]
        phase = (2 * math.pi * (drawn - 0.5)).to(like.dtype)
        phase[:, 0] = 0
        return phase

    def draw_noise(self, seeds: Sequence[int], like: Tensor, *, start: int | Sequence[int] = 0) -> Tensor:
        """Noise (B, H, S) for an F0 (B, T) whose first frame is `start`, of all rows or of each."""
        channels = self.frame_samples * self.harmonics
        drawn = noises.normal(seeds, Stream.SOURCE, like.shape[1], channels, device=like.device, start=start)
        return drawn.view(len(seeds), -1, self.harmonics).transpose(1, 2).to(like.dtype)

    def _signal(self, f0: Tensor, turns: Tensor, phase: Tensor, noise: Tensor) -> Tensor:
        sines = self.amplitude * torch.sin(2 * math.pi * turns + phase)
        voiced = (f0 > self.voiced_threshold).to(f0.dtype).repeat_interleave(self.frame_samples, dim=1)[:, None, :]
        spread = voiced * self.noise_std + (1 - voiced) * self.amplitude / 3
        waves = sines * voiced + spread * noise
        with strict_float32(f0.device):
            return torch.tanh(self.linear(waves.transpose(1, 2))).transpose(1, 2)

    def _turns(self, f0: Tensor, frames: int, state: SourceState) -> tuple[Tensor, Tensor]:
        """Phase of every harmonic at every sample of `frames` frames, in turns 0 .. 1 (about): (B, H, S).

        And the turns (B, H) at the border behind them, float64.
        """
        harmonic = torch.arange(1, self.harmonics + 1, device=f0.device)[None, :, None]
        exact = f0[:, :frames].to(state.turns.dtype)
        step = exact[:, None, :] * harmonic / self.sampling_rate  # turns per sample, (B, H, T)
        before = (torch.cumsum(step, dim=2) - step) * self.frame_samples + state.turns[..., None]
        inside = torch.arange(1, self.frame_samples + 1, dtype=f0.dtype, device=f0.device)
        within = (before % 1).to(f0.dtype)[..., None] + step.to(f0.dtype)[..., None] * inside
        return (within % 1).flatten(2), (state.turns + step.sum(dim=2) * self.frame_samples) % 1


def _exact(device: torch.device) -> torch.dtype:
    """What phase is summed in: float64 where the device has it."""
    return torch.float32 if device.type == "mps" else torch.float64
