"""The vocoder's short-time Fourier transform and its inverse, exact in ragged batches.

Reference: ``torch.stft`` and ``torch.istft`` as chatterbox-tts 0.1.7 calls them in ``models/s3gen/hifigan.py``.

Shape letters: B rows, S samples, R STFT frames, Q frequency bins.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from s3gen.ragged import on_device

_MIN_ENVELOPE = 1e-11  # below it no window covers a sample; torch.istft's own threshold


class ShortTimeFourier(nn.Module):
    """A small STFT and its inverse whose edges follow each row's own end.

    ``torch.stft`` would reflect, and ``torch.istft`` would normalise, at the end of the padded batch.
    """

    window: Tensor

    def __init__(self, n_fft: int, hop: int) -> None:
        super().__init__()
        self.n_fft = n_fft
        self.hop = hop
        # The device is named so that the window is real even in a model built on the meta device.
        window = torch.hann_window(n_fft, periodic=True, dtype=torch.float32, device="cpu")
        self.register_buffer("window", window, persistent=False)

    def forward(self, x: Tensor, lengths: Sequence[int]) -> Tensor:
        """Signal (B, S), right-padded, to real and imaginary parts (B, 2 x Q, S / hop + 1); rubbish in the padding."""
        half = self.n_fft // 2
        framed = self._reflect(x, lengths, half).unfold(1, self.n_fft, self.hop) * self.window
        spectrum = torch.fft.rfft(framed, dim=2).transpose(1, 2)
        return torch.cat((spectrum.real, spectrum.imag), dim=1)

    def _reflect(self, x: Tensor, lengths: Sequence[int], half: int) -> Tensor:
        """`x` with `half` samples more at either side of every row, mirrored at the row's own ends."""
        position = torch.arange(-half, x.shape[1] + half, device=x.device).abs()[None, :]
        last = on_device(torch.tensor(lengths), x.device)[:, None] - 1
        mirrored = torch.where(position > last, 2 * last - position, position)
        return x.gather(1, mirrored.clamp(min=0))

    def inverse(self, spectrum: Tensor, mask: Tensor | None) -> Tensor:
        """Complex spectrum (B, Q, R), zero where `mask` (B, R) is False, to the signal (B, hop x (R - 1))."""
        frames = torch.fft.irfft(spectrum, n=self.n_fft, dim=1) * self.window[:, None]
        squares = self.window.square()[:, None].expand(1, -1, spectrum.shape[2])
        envelope = self._overlap_add(squares if mask is None else squares * mask[:, None, :].to(squares.dtype))
        return self._overlap_add(frames) / torch.where(envelope > _MIN_ENVELOPE, envelope, 1.0)

    def _overlap_add(self, frames: Tensor) -> Tensor:
        """(B, n_fft, R) to (B, hop x (R - 1)): summed at their places, half a window cut off at both ends."""
        length = self.hop * (frames.shape[2] - 1) + self.n_fft
        added = F.fold(frames, (1, length), (1, self.n_fft), stride=(1, self.hop))
        half = self.n_fft // 2
        return added[:, 0, 0, half : length - half]
