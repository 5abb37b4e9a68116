"""The vocoder over a mel that is still being made: what it has said stays said, and nothing is computed twice over.

Each step decodes a window: enough frames before the new ones for every convolution, and after them what is held back,
since the samples of a frame depend on frames to its right. Phase is carried at the border in turns, and noise is drawn
by the absolute frame, so the pieces joined are the whole, to rounding.

Shape letters: B rows, M mel bins, n mel frames, S samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from s3gen import noise as noises
from s3gen.source import SourceState
from s3gen.stream_reach import Reach, reach
from s3gen.vocoder import HiFTNetModel


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class VocoderState:
    """Where B rows stand, all at the same frame.

    Attributes:
        mel: (B, M, n) the last frames that were spoken, as far as they are still read, then those that wait.
        source: (B, 1, S) the source of the spoken ones among them.
        phase: the harmonic source at the border between the two.
    """

    mel: Tensor
    source: Tensor
    phase: SourceState

    @property
    def frames(self) -> int:
        """How many were spoken since the beginning."""
        return self.phase.start


class VocoderStream:
    """Log-mel in pieces to waveform in pieces. It holds no state: `begin` makes one, `step` and `finish` take it."""

    def __init__(self, vocoder: HiFTNetModel) -> None:
        self.vocoder = vocoder
        self.reach: Reach = reach(vocoder)

    def begin(self, seed: int | Sequence[int] = 0, *, rows: int = 1) -> VocoderState:
        """Before the first frame of `rows` rows; one seed of phases and noise for all, or one each.

        Raises:
            ValueError: a seed that is none, or another number of them.
        """
        like = self.vocoder.conv_pre.weight
        return VocoderState(
            mel=like.new_zeros(rows, self.vocoder.config.in_channels, 0),
            source=like.new_zeros(rows, 1, 0),
            phase=self.vocoder.source.begin(noises.per_row(seed, rows), like.device),
        )

    def step(self, state: VocoderState, mel: Tensor, *, least: int = 0) -> tuple[Tensor, VocoderState]:
        """The samples that more frames allow.

        Args:
            state: of `begin`, or of the step before; it is left as it is.
            mel: (B, M, n) the next frames, from none on.
            least: frames to speak of those that wait, even if what they depend on is not all there yet: the mel is then
                taken to stand still behind its last frame. With 0 all samples are those of the whole mel.

        Returns:
            The waveform (B, S), maybe empty: all but the last `reach.right` frames have been spoken then. And the state
            behind it.

        Raises:
            ValueError: a mel of another shape.
        """
        joined = self._joined(state, mel)
        waiting = self._waiting(joined)
        frames = min(waiting, max(least, waiting - self.reach.right))
        return self._spoken(joined, frames, ahead=self.reach.right - (waiting - frames))

    def finish(self, state: VocoderState, mel: Tensor | None = None) -> Tensor:
        """The samples (B, S) of the frames that still wait and of `mel`, as for `step`, after which the mel ends."""
        whole = state if mel is None else self._joined(state, mel)
        return self._spoken(whole, self._waiting(whole), ahead=0)[0]

    def _joined(self, state: VocoderState, mel: Tensor) -> VocoderState:
        rows, bins, _ = state.mel.shape
        if mel.dim() != 3 or mel.shape[:2] != (rows, bins):
            raise ValueError(f"the mel must have shape ({rows}, {bins}, frames), not {tuple(mel.shape)}")
        return replace(state, mel=torch.cat((state.mel, mel.to(state.mel)), dim=2))

    def _known(self, state: VocoderState) -> int:
        """Frames of the window that were spoken before."""
        return state.source.shape[2] // self.vocoder.config.frame_samples

    def _waiting(self, state: VocoderState) -> int:
        return state.mel.shape[2] - self._known(state)

    @torch.no_grad()
    def _spoken(self, state: VocoderState, frames: int, *, ahead: int) -> tuple[Tensor, VocoderState]:
        """The next frames' samples, the last known frame standing for the `ahead` that follow it."""
        if not frames:
            return state.mel.new_zeros(len(state.mel), 0), state
        samples, known, length = self.vocoder.config.frame_samples, self._known(state), state.mel.shape[2]
        mel = torch.cat((state.mel, state.mel[:, :, length - 1 :].expand(-1, -1, ahead)), dim=2)
        f0 = self.vocoder.f0(mel)[:, known:]
        new, phase = self.vocoder.source.extend(f0, state.phase, frames=frames)
        later, _ = self.vocoder.source.extend(f0[:, frames:], phase, frames=f0.shape[1] - frames)
        source = torch.cat((state.source, new, later), dim=2)
        wave = self.vocoder.decode(mel, source)
        end = known + frames
        start = max(0, end - self.reach.left)
        behind = VocoderState(
            mel=state.mel[:, :, start:], source=source[:, :, start * samples : end * samples], phase=phase
        )
        return wave[:, known * samples : end * samples].clone(), behind
