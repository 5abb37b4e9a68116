"""CosyVoice2's harmonic source: its phase is summed per frame and drawn straight from frame to frame.

Reference: FunAudioLLM/CosyVoice at ace7c47f, ``cosyvoice/hifigan/generator.py`` (SineGen2).

Shape letters: B rows, T mel frames, H harmonics (fundamental included), S samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from s3gen.source import HarmonicSource, SourceState


class InterpolatedSource(HarmonicSource):
    """`HarmonicSource` whose phase is known at the middle of every frame and linear between two middles.

    The reference sums F0 per frame and interpolates the sum. Between the middles of two frames the phase therefore runs
    at the F0 of the second, and it stands still before the first middle and behind the last.

    Where F0 is 0, the phase stands still too. Rows that are padded with zeros, as the F0 predictor pads them, therefore
    end in a batch as they do alone.
    """

    lookahead_frames: ClassVar[int] = 1

    def draw_phase(self, seeds: Sequence[int], like: Tensor) -> Tensor:
        """Starting phases (B, H, 1): all 0.

        The reference draws them, but adds them to the first sample, and its interpolation reads the two samples in the
        middle of each frame alone. All harmonics start together.
        """
        return like.new_zeros(len(seeds), self.harmonics, 1)

    def _turns(self, f0: Tensor, frames: int, state: SourceState) -> tuple[Tensor, Tensor]:
        harmonic = torch.arange(1, self.harmonics + 1, device=f0.device)[None, :, None]
        exact = F.pad(f0, (0, 1))[:, : frames + 1].to(state.turns.dtype)
        step = exact[:, None, :] * harmonic / self.sampling_rate % 1  # turns per sample, (B, H, frames + 1)
        middle = torch.cumsum(step[..., :frames], dim=2) * self.frame_samples + state.turns[..., None]
        before, after = step[..., :frames].clone(), step[..., 1:]
        if state.start == 0:
            before[..., :1] = 0
        offset = torch.arange(self.frame_samples, dtype=f0.dtype, device=f0.device) - (self.frame_samples - 1) / 2
        slopes = torch.where(offset < 0, before[..., None].to(f0.dtype), after[..., None].to(f0.dtype))
        turns = (middle % 1).to(f0.dtype)[..., None] + slopes * offset
        end = (state.turns + step[..., :frames].sum(dim=2) * self.frame_samples) % 1
        return (turns % 1).flatten(2), end
