"""The flow's velocity estimator: a causal one-level U-Net with transformer blocks over prompt and generated frames.

Reference: chatterbox-tts 0.1.7, ``models/s3gen/decoder.py`` (ConditionalDecoder) and ``models/s3gen/matcha``.
Mean-flow's second time: ``models/s3gen/utils/intmeanflow.py``.

Every convolution is causal and everything else but attention works on single positions, so a right-padded batch is
exact with key masks alone.

Shape letters: B rows (guidance halves included), T frames, C channels, E width of the time embedding.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from s3gen.config import EstimatorConfig


class Estimator(nn.Module):
    """dx/dt of the mel at a time, given noise, mu, speaker and prompt."""

    def __init__(self, config: EstimatorConfig) -> None:
        super().__init__()
        channels, time_dim = config.channels, 4 * config.channels
        self.in_channels = config.in_channels
        self.heads = config.heads
        self.time_mlp = TimeEmbedding(config.in_channels, time_dim)
        self.time_embed_mixer = nn.Linear(2 * time_dim, time_dim, bias=False) if config.meanflow else None
        self.down = Stage(config, config.in_channels, time_dim)
        self.down_conv = CausalConv(channels, channels, 3)
        self.mid = nn.ModuleList(Stage(config, channels, time_dim) for _ in range(config.mid_blocks))
        self.up = Stage(config, 2 * channels, time_dim)
        self.up_conv = CausalConv(channels, channels, 3)
        self.final_conv = CausalConv(channels, channels, 3)
        self.final_norm = nn.LayerNorm(channels)
        self.final_proj = nn.Linear(channels, config.out_channels)

    def forward(self, x: Tensor, condition: Tensor, time: Tensor, mask: Tensor | None) -> Tensor:
        """The velocity.

        Args:
            x: (B, T, mel bins), the mel on its way from noise.
            condition: (B, T, 3 x mel bins): mu, speaker and prompt, which stay the same over the solver's steps.
            time: (E,), of `embed_time`.
            mask: (B, T) bool, True at the frames that exist; None when all do.

        Returns:
            (B, T, mel bins); finite but meaningless in the padding.
        """
        skip = self.down(torch.cat((x, condition), dim=2), time, mask)
        hidden = self.down_conv(skip)
        for stage in self.mid:
            hidden = stage(hidden, time, mask)
        hidden = self.up_conv(self.up(torch.cat((hidden, skip), dim=2), time, mask))
        return self.final_proj(F.mish(self.final_norm(self.final_conv(hidden))))

    def embed_time(self, start: Tensor, end: Tensor) -> Tensor:
        """The embedding (E,) of a step from time `start` to `end` (scalars); only mean-flow looks at the end."""
        time = self.time_mlp(sinusoids(start, self.in_channels))
        if self.time_embed_mixer is None:
            return time
        end_time = self.time_mlp(sinusoids(end, self.in_channels))
        return self.time_embed_mixer(torch.cat((time, end_time)))


def sinusoids(time: Tensor, dim: int) -> Tensor:
    """Sines, then cosines, of 1,000 x a scalar time: (dim,). The rates are float32, as the reference's."""
    half = dim // 2
    rates = torch.exp(torch.arange(half, dtype=torch.float32, device=time.device) * -(math.log(10_000) / (half - 1)))
    angle = 1000 * time * rates
    return torch.cat((angle.sin(), angle.cos())).to(time.dtype)


class TimeEmbedding(nn.Module):
    """Two linear layers with a SiLU between."""

    def __init__(self, in_channels: int, time_dim: int) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(in_channels, time_dim)
        self.linear_2 = nn.Linear(time_dim, time_dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear_2(F.silu(self.linear_1(x)))


class Stage(nn.Module):
    """A residual block and the transformer blocks behind it."""

    def __init__(self, config: EstimatorConfig, in_channels: int, time_dim: int) -> None:
        super().__init__()
        self.resnet = ResnetBlock(in_channels, config.channels, time_dim)
        self.blocks = nn.ModuleList(
            TransformerBlock(config.channels, config.heads, config.head_dim) for _ in range(config.blocks)
        )

    def forward(self, x: Tensor, time: Tensor, mask: Tensor | None) -> Tensor:
        """(B, T, in channels) to (B, T, C)."""
        x = self.resnet(x, time)
        for block in self.blocks:
            x = block(x, mask)
        return x


class CausalConv(nn.Conv1d):
    """A convolution over (B, T, C) that sees this position and those before it."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int) -> None:
        super().__init__(in_channels, out_channels, kernel_size)

    def forward(self, x: Tensor) -> Tensor:
        padded = F.pad(x.transpose(1, 2), (self.kernel_size[0] - 1, 0))
        return super().forward(padded).transpose(1, 2)


class ResnetBlock(nn.Module):
    """Two causal convolutions with LayerNorm and Mish, the time added between, and a projected skip."""

    def __init__(self, in_channels: int, channels: int, time_dim: int) -> None:
        super().__init__()
        self.conv1 = CausalConv(in_channels, channels, 3)
        self.norm1 = nn.LayerNorm(channels)
        self.time_proj = nn.Linear(time_dim, channels)
        self.conv2 = CausalConv(channels, channels, 3)
        self.norm2 = nn.LayerNorm(channels)
        self.skip_proj = nn.Linear(in_channels, channels)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """(B, T, in channels) and (E,) to (B, T, C)."""
        hidden = F.mish(self.norm1(self.conv1(x))) + self.time_proj(F.mish(time))
        hidden = F.mish(self.norm2(self.conv2(hidden)))
        return hidden + self.skip_proj(x)


class TransformerBlock(nn.Module):
    """Self-attention over the whole row and a GELU feed-forward layer, each behind its norm."""

    def __init__(self, channels: int, heads: int, head_dim: int) -> None:
        super().__init__()
        inner = heads * head_dim
        self.heads = heads
        self.attn_norm = nn.LayerNorm(channels)
        self.query = nn.Linear(channels, inner, bias=False)
        self.key = nn.Linear(channels, inner, bias=False)
        self.value = nn.Linear(channels, inner, bias=False)
        self.out = nn.Linear(inner, channels)
        self.ff_norm = nn.LayerNorm(channels)
        self.ff_in = nn.Linear(channels, 4 * channels)
        self.ff_out = nn.Linear(4 * channels, channels)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """(B, T, C) to (B, T, C); mask (B, T) bool, True at the keys that exist."""
        x = x + self._attention(self.attn_norm(x), mask)
        return x + self.ff_out(F.gelu(self.ff_in(self.ff_norm(x))))

    def _attention(self, x: Tensor, mask: Tensor | None) -> Tensor:
        query, key, value = (
            linear(x).unflatten(2, (self.heads, -1)).transpose(1, 2) for linear in (self.query, self.key, self.value)
        )
        keys = None if mask is None else mask[:, None, None, :]
        attended = F.scaled_dot_product_attention(query, key, value, attn_mask=keys)
        return self.out(attended.transpose(1, 2).flatten(2))
