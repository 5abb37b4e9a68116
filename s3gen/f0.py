"""The pitch that the vocoder's source follows.

Reference: chatterbox-tts 0.1.7, ``models/s3gen/f0_predictor.py``.

Shape letters: B rows, T mel frames, M mel bins.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from s3gen.ragged import length_mask, zero_padding


class _ExactConv(nn.Conv1d):
    """A convolution at its input's dtype, whatever the weights' is."""

    def forward(self, x: Tensor) -> Tensor:
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return self._conv_forward(x, self.weight.to(x.dtype), bias)


class F0Predictor(nn.Module):
    """Five convolutions and a linear layer: log-mel to F0.

    In float64 where the device has it. F0 feeds a phase that is summed over the utterance: an error of 1e-6 Hz is
    audible phase after ten seconds, and no reduced-precision matrix mode may touch these convolutions.
    """

    def __init__(self, mels: int, channels: int) -> None:
        super().__init__()
        self.convs = nn.ModuleList(_ExactConv(mels if i == 0 else channels, channels, 3, padding=1) for i in range(5))
        self.classifier = nn.Linear(channels, 1)

    def forward(self, mel: Tensor, lengths: Sequence[int] | None = None) -> Tensor:
        """F0 in Hz, at least 0, (B, T), from log-mel (B, M, T); 0 behind each row's end. At the mel's dtype."""
        exact = mel.dtype if mel.device.type == "mps" else torch.float64
        mask = length_mask([mel.shape[2]] * len(mel) if lengths is None else lengths, mel.device)
        x = mel.to(exact)
        for conv in self.convs:
            x = F.elu(conv(zero_padding(x, mask)))
        f0 = F.linear(x.transpose(1, 2), self.classifier.weight.to(exact), self.classifier.bias.to(exact))
        f0 = f0.squeeze(2).abs().to(mel.dtype)
        return f0 if mask is None else f0 * mask.to(f0.dtype)
