"""The upsampling conformer encoder: speech tokens' embeddings to a sequence at twice their rate.

Reference: chatterbox-tts 0.1.7, ``models/s3gen/transformer/upsample_encoder.py`` (there without its unused
convolution modules, chunk masks and caches); for tokens that attention does not see, FunAudioLLM/CosyVoice at ace7c47f,
``cosyvoice/transformer/upsample_encoder.py``. Relative positions: Dai et al., arXiv 1901.02860, appendix B.

In a right-padded batch, exactness needs one zeroing, before the look-ahead convolution, and key masks at both rates.
Positions depend on i - j alone, so padding does not shift them.

Shape letters: B rows, N token positions, T positions of either rate, D width, H heads, K width of a head.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from s3gen.config import EncoderConfig
from s3gen.ragged import length_mask, zero_padding


class UpsampleEncoder(nn.Module):
    """Look-ahead, conformer blocks at the token rate, upsampling, conformer blocks at the mel rate."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.stride = config.stride
        self.lookahead_tokens = config.lookahead
        self.encode_lookahead = config.encode_lookahead
        self.embed = InputLayer(config.input_dim, config.dim)
        self.lookahead = Lookahead(config.dim, config.lookahead)
        self.blocks = nn.ModuleList(EncoderBlock(config) for _ in range(config.blocks))
        self.upsample = Upsample(config.dim, config.stride)
        self.up_embed = InputLayer(config.dim, config.dim)
        self.up_blocks = nn.ModuleList(EncoderBlock(config) for _ in range(config.up_blocks))
        self.norm = nn.LayerNorm(config.dim)

    def forward(self, x: Tensor, lengths: Sequence[int], finalize: bool = True) -> Tensor:
        """Encode a right-padded batch.

        Args:
            x: (B, N, input width) float; what stands in the padding does not matter, if it is finite.
            lengths: B row lengths, the longest N.
            finalize: whether the rows end here. If not, each row's last tokens are held back as look-ahead, and
                attention sees them only where the configuration says so.

        Returns:
            (B, stride x N, D); row i holds data up to stride x lengths[i], less what is held back.
        """
        whole = self.stride * x.shape[1]
        mask = length_mask(lengths, x.device)
        x = self.embed(x).transpose(1, 2)
        # The input layer's bias and norm make padding non-zero, and the look-ahead reads three tokens of it.
        x = self.lookahead(zero_padding(x, mask)).transpose(1, 2)
        if not finalize and not self.encode_lookahead:
            lengths = [max(1, length - self.lookahead_tokens) for length in lengths]  # 1: something to attend to
            x = x[:, : max(lengths)]
            mask = length_mask(lengths, x.device)
        x = _run(self.blocks, x, mask)
        x = self.up_embed(self.upsample(x.transpose(1, 2)).transpose(1, 2))
        x = _run(self.up_blocks, x, length_mask([length * self.stride for length in lengths], x.device))
        x = self.norm(x)
        return x if x.shape[1] == whole else F.pad(x, (0, 0, 0, whole - x.shape[1]))


def _run(blocks: nn.ModuleList, x: Tensor, mask: Tensor | None) -> Tensor:
    positions = relative_positions(x.shape[1], x.shape[2], x)
    for block in blocks:
        x = block(x, positions, mask)
    return x


def relative_positions(length: int, dim: int, like: Tensor) -> Tensor:
    """Sinusoids of the distances length - 1 down to -(length - 1): (2 x length - 1, dim).

    In float32 whatever the model's dtype, as the reference computes them: in float64 the angles of far positions
    differ by more than the tolerance.
    """
    distance = torch.arange(length - 1, -length, -1, dtype=torch.float32, device=like.device)[:, None]
    rates = torch.exp(torch.arange(0, dim, 2, dtype=torch.float32, device=like.device) * -(math.log(10_000.0) / dim))
    angle = distance * rates
    return torch.stack((angle.sin(), angle.cos()), dim=-1).flatten(1).to(like.dtype)


class InputLayer(nn.Module):
    """Linear and LayerNorm, scaled by the square root of the width (espnet's relative position encoding)."""

    def __init__(self, input_dim: int, dim: int) -> None:
        super().__init__()
        self.linear = nn.Linear(input_dim, dim)
        self.norm = nn.LayerNorm(dim)
        self.scale = math.sqrt(dim)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, input width) to (B, T, D)."""
        return self.norm(self.linear(x)) * self.scale


class Lookahead(nn.Module):
    """Lets every token see the next few, then two convolved ones back; residual."""

    def __init__(self, dim: int, tokens: int) -> None:
        super().__init__()
        self.tokens = tokens
        self.conv1 = nn.Conv1d(dim, dim, tokens + 1)
        self.conv2 = nn.Conv1d(dim, dim, 3)

    def forward(self, x: Tensor) -> Tensor:
        """(B, D, N) to (B, D, N); padding must be zero."""
        ahead = F.leaky_relu(self.conv1(F.pad(x, (0, self.tokens))))
        return self.conv2(F.pad(ahead, (2, 0))) + x


class Upsample(nn.Module):
    """Repeats every position, then a causal convolution."""

    def __init__(self, dim: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.conv = nn.Conv1d(dim, dim, 2 * stride + 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, D, N) to (B, D, stride x N)."""
        repeated = x.repeat_interleave(self.stride, dim=2)
        return self.conv(F.pad(repeated, (2 * self.stride, 0)))


class EncoderBlock(nn.Module):
    """Self-attention with relative positions and a feed-forward layer, each behind its norm."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(config.dim, eps=1e-12)
        self.attention = RelativeAttention(config.dim, config.heads)
        self.feed_forward_norm = nn.LayerNorm(config.dim, eps=1e-12)
        self.feed_forward = nn.Sequential(
            nn.Linear(config.dim, config.hidden_dim), nn.SiLU(), nn.Linear(config.hidden_dim, config.dim)
        )

    def forward(self, x: Tensor, positions: Tensor, mask: Tensor | None) -> Tensor:
        """(B, T, D) to (B, T, D); arguments as for `RelativeAttention`."""
        x = x + self.attention(self.attention_norm(x), positions, mask)
        return x + self.feed_forward(self.feed_forward_norm(x))


class RelativeAttention(nn.Module):
    """Multi-head self-attention whose scores add a learned function of the distance i - j."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(dim, dim)
        self.key = nn.Linear(dim, dim)
        self.value = nn.Linear(dim, dim)
        self.out = nn.Linear(dim, dim)
        self.position = nn.Linear(dim, dim, bias=False)
        self.content_bias = nn.Parameter(torch.zeros(heads, dim // heads))
        self.position_bias = nn.Parameter(torch.zeros(heads, dim // heads))

    def forward(self, x: Tensor, positions: Tensor, mask: Tensor | None) -> Tensor:
        """Attend over the whole row.

        Args:
            x: (B, T, D).
            positions: (2 x T - 1, D), see `relative_positions`.
            mask: (B, T) bool, True at the keys that exist; None when all do.
        """
        query = self.query(x).unflatten(2, (self.heads, -1))  # (B, T, H, K)
        key, value = self._heads(self.key(x)), self._heads(self.value(x))
        distance = self._heads(self.position(positions)[None])  # (1, H, 2T-1, K)
        scale = key.shape[-1] ** -0.5
        place = ((query + self.position_bias) * scale).transpose(1, 2)
        bias = _by_distance(place @ distance.transpose(2, 3))
        if mask is not None:
            # In place: this is the encoder's largest tensor, some 800 MB for a row of a minute.
            bias.masked_fill_(~mask[:, None, None, :], -math.inf)
        content = (query + self.content_bias).transpose(1, 2)
        attended = F.scaled_dot_product_attention(content, key, value, attn_mask=bias, scale=scale)
        return self.out(attended.transpose(1, 2).flatten(2))

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(2, (self.heads, -1)).transpose(1, 2)


def _by_distance(scores: Tensor) -> Tensor:
    """Scores by distance (B, H, T, 2T-1) to scores by key (B, H, T, T): column j of row i is distance i - j.

    Row i starts T - 1 - i columns in, so the rows of the result lie 2T - 2 apart: a view, no copy.
    """
    batch, heads, length, _ = scores.shape
    scores = scores.contiguous()
    strides = (scores.stride(0), scores.stride(1), 2 * length - 2, 1)
    return scores.as_strided((batch, heads, length, length), strides, scores.storage_offset() + length - 1)
