"""The speaker encoder CAMPPlus: a clip's voice as one vector, layer by layer as it was trained.

A small 2-D convolutional head over the filter bank, densely connected time-delay layers with context-aware masks, and
the mean and deviation over time. Written after chatterbox-tts 0.1.7 (models/s3gen/xvector.py); parameters are named
as there, except that the batch norms keep no count of batches. `s3gen.folded` computes the same faster.

Shape letters: B clips of one length, T filter bank frames, S frames after the time-delay layer (about T / 2),
M mel bins, C channels, E width of the vector.
"""

from __future__ import annotations

from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from s3gen.config import SpeakerConfig
from s3gen.constants import exact_div

SEGMENT = 100  # frames that share a context
NORM_EPS = 1e-5

_HEAD_SHRINK = 8  # the head halves the mel axis three times
_TDNN_TAPS = 5
_DENSE_TAPS = 3
_DILATIONS = (1, 2, 2)  # of the dense blocks


class XVector(nn.Sequential):
    """What follows the head: (B, C x M / 8, T) to (B, E)."""

    tdnn: TDNN
    block1: DenseBlock
    transit1: Transit
    block2: DenseBlock
    transit2: Transit
    block3: DenseBlock
    transit3: Transit
    out_nonlinear: NormReLU
    stats: StatsPool
    dense: Dense

    def __init__(self, config: SpeakerConfig) -> None:
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        channels = config.init_channels
        layers["tdnn"] = TDNN(config.head_channels * exact_div(config.mels, _HEAD_SHRINK), channels)
        for number, (count, dilation) in enumerate(zip(config.blocks, _DILATIONS, strict=True), start=1):
            layers[f"block{number}"] = DenseBlock(channels, count, config.growth, config.bottleneck, dilation)
            channels += count * config.growth
            layers[f"transit{number}"] = Transit(channels, channels // 2)
            channels //= 2
        layers["out_nonlinear"] = NormReLU(channels)
        layers["stats"] = StatsPool()
        layers["dense"] = Dense(2 * channels, config.embed_dim)
        super().__init__(layers)


class BatchNorm(nn.Module):
    """Batch normalisation by stored statistics, over dimension 1."""

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, channels: int, *, affine: bool = True) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels)) if affine else None
        self.bias = nn.Parameter(torch.zeros(channels)) if affine else None
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        """`x` (B, C, ...) normalised per channel."""
        return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, eps=NORM_EPS)


class NormReLU(nn.Module):
    """Batch norm, then ReLU."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.batchnorm = BatchNorm(channels)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.batchnorm(x))


class ResBlock(nn.Module):
    """Two 2-D convolutions beside a shortcut; `stride` shrinks the mel axis."""

    def __init__(self, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, stride=(stride, 1), padding=1, bias=False)
        self.bn1 = BatchNorm(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = BatchNorm(channels)
        self.shortcut = nn.Sequential()
        if stride != 1:
            shrink = nn.Conv2d(channels, channels, 1, stride=(stride, 1), bias=False)
            self.shortcut = nn.Sequential(shrink, BatchNorm(channels))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, M, T) to (B, C, M / stride, T)."""
        y = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(y)) + self.shortcut(x))


class Head(nn.Module):
    """The filter bank as an image: an eighth of the mel bins, every frame."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, channels, 3, padding=1, bias=False)
        self.bn1 = BatchNorm(channels)
        self.layer1 = nn.Sequential(ResBlock(channels, 2), ResBlock(channels, 1))
        self.layer2 = nn.Sequential(ResBlock(channels, 2), ResBlock(channels, 1))
        self.conv2 = nn.Conv2d(channels, channels, 3, stride=(2, 1), padding=1, bias=False)
        self.bn2 = BatchNorm(channels)

    def forward(self, features: Tensor) -> Tensor:
        """(B, M, T) to (B, C x M / 8, T)."""
        x = F.relu(self.bn1(self.conv1(features[:, None])))
        x = self.layer2(self.layer1(x))
        return F.relu(self.bn2(self.conv2(x))).flatten(1, 2)


class TDNN(nn.Module):
    """The time-delay layer that halves the frame rate."""

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        self.linear = nn.Conv1d(in_channels, channels, _TDNN_TAPS, stride=2, padding=_TDNN_TAPS // 2, bias=False)
        self.nonlinear = NormReLU(channels)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C_in, T) to (B, C, S)."""
        y: Tensor = self.nonlinear(self.linear(x))
        return y


class CAMLayer(nn.Module):
    """A convolution whose output is weighed by its context: the mean of the clip plus that of the segment."""

    def __init__(self, channels: int, out_channels: int, dilation: int) -> None:
        super().__init__()
        reach = _DENSE_TAPS // 2 * dilation
        self.linear_local = nn.Conv1d(channels, out_channels, _DENSE_TAPS, padding=reach, dilation=dilation, bias=False)
        self.linear1 = nn.Conv1d(channels, channels // 2, 1)
        self.linear2 = nn.Conv1d(channels // 2, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, S) to (B, C_out, S)."""
        context = F.relu(self.linear1(x.mean(-1, keepdim=True) + segment_means(x)))
        weighed: Tensor = self.linear_local(x) * torch.sigmoid(self.linear2(context))
        return weighed


def segment_means(x: Tensor) -> Tensor:
    """`x` (B, C, S) with each frame replaced by the mean of its segment of 100; the last one may be shorter."""
    means = F.avg_pool1d(x, kernel_size=SEGMENT, stride=SEGMENT, ceil_mode=True)
    return means.repeat_interleave(SEGMENT, dim=-1)[..., : x.shape[-1]]


class DenseLayer(nn.Module):
    """A bottleneck, then a context-aware convolution."""

    def __init__(self, channels: int, growth: int, bottleneck: int, dilation: int) -> None:
        super().__init__()
        width = bottleneck * growth
        self.nonlinear1 = NormReLU(channels)
        self.linear1 = nn.Conv1d(channels, width, 1, bias=False)
        self.nonlinear2 = NormReLU(width)
        self.cam_layer = CAMLayer(width, growth, dilation)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, S) to (B, growth, S)."""
        y: Tensor = self.cam_layer(self.nonlinear2(self.linear1(self.nonlinear1(x))))
        return y


class DenseBlock(nn.Module):
    """Layers that each read all that came before them and add `growth` channels."""

    def __init__(self, channels: int, count: int, growth: int, bottleneck: int, dilation: int) -> None:
        super().__init__()
        for number in range(count):
            layer = DenseLayer(channels + number * growth, growth, bottleneck, dilation)
            self.add_module(f"tdnnd{number + 1}", layer)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, S) to (B, C + count x growth, S)."""
        for layer in self.children():
            x = torch.cat((x, layer(x)), dim=1)
        return x


class Transit(nn.Module):
    """Between dense blocks: fewer channels."""

    def __init__(self, channels: int, out_channels: int) -> None:
        super().__init__()
        self.nonlinear = NormReLU(channels)
        self.linear = nn.Conv1d(channels, out_channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, S) to (B, C_out, S)."""
        y: Tensor = self.linear(self.nonlinear(x))
        return y


class StatsPool(nn.Module):
    """Mean and standard deviation over time, (B, C, S) to (B, 2 C)."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat((x.mean(dim=-1), x.std(dim=-1)), dim=-1)


class Dense(nn.Module):
    """The last projection and its batch norm, which has neither weight nor bias."""

    def __init__(self, channels: int, out_channels: int) -> None:
        super().__init__()
        self.linear = nn.Conv1d(channels, out_channels, 1, bias=False)
        self.nonlinear = nn.Sequential(OrderedDict(batchnorm=BatchNorm(out_channels, affine=False)))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C) to (B, E)."""
        y: Tensor = self.nonlinear(self.linear(x[..., None])[..., 0])
        return y
