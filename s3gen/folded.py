"""CAMPPlus as it runs: the weights and numbers of `s3gen.campplus`, with less work around them.

Clips of different lengths lie end to end in time, with empty positions between them that keep their convolutions apart:
nothing is computed in vain, and a clip's vector does not depend on its company. No batch norm is left. Where one
follows a convolution, it is part of its weights. Where one stands before a ReLU and a linear layer, only a bound is
left of it: for a scale a > 0, relu(a x + b) = a max(x, -b / a) + b, whose scale and shift belong into the layer behind;
for a < 0 the same with min.

Shape letters: B clips, T filter bank frames of a clip, S positions of a clip after the time-delay layer (T / 2, rounded
up), L positions of all clips, G their segments, M mel bins, C channels, O outputs of a layer, K its inputs, E width of
the vector.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from s3gen.campplus import NORM_EPS, SEGMENT, BatchNorm, DenseLayer, Head, ResBlock, XVector
from s3gen.ragged import on_device
from s3gen.scratch import Scratch

_GAP = 2  # empty positions between clips: as far as the dense layers' convolutions reach
_STRIDE = 2  # of the time-delay layer: filter bank frames per position


class Layer(NamedTuple):
    """Weight (O, K), of convolutions (O, K, taps) and (O, K, taps, taps); bias (O,) or, for (C, L) inputs, (O, 1)."""

    weight: Tensor
    bias: Tensor


class Bounds(NamedTuple):
    """What is left of a batch norm and its ReLU: (C, 1) each; no upper one where no channel has one."""

    low: Tensor
    high: Tensor | None

    def clamp(self, x: Tensor, out: Tensor | None = None) -> Tensor:
        """`x` (C, L) within the bounds."""
        y = torch.maximum(x, self.low, out=out)
        return y if self.high is None else torch.minimum(y, self.high, out=y)


class Residual(NamedTuple):
    """A residual block of the head; `shortcut` is None where it is the identity."""

    conv1: Layer
    conv2: Layer
    shortcut: Layer | None
    stride: int


class Dense(NamedTuple):
    """A densely connected layer; `taps` (3 x O, K) are the convolution's taps one above the other."""

    bounds: Bounds
    bottleneck: Layer
    taps: Tensor
    dilation: int
    context1: Layer
    context2: Layer


class Transit(NamedTuple):
    """What stands between dense blocks."""

    bounds: Bounds
    linear: Layer


class Lanes:
    """Where each clip lies.

    Args:
        frames: T of each clip.
        like: a tensor of the device and type of the weights.

    Attributes:
        starts: the first position of each clip; its first filter bank frame is twice that.
        size: L.
        frame_gaps: filter bank frames, of 2 x L, at which there is no clip, int64.
        gaps: positions, of L, at which there is no clip, int64.
        clip: (L,) int64, the clip of each position; any in a gap.
        segment: (L,) int64, likewise its segment.
        clip_means: (L, B): a product with it is the mean over each clip.
        contexts: (L, G): a product with it is the mean over a segment plus that over its clip.
        counts: (B, 1): S of each clip.
    """

    def __init__(self, frames: Sequence[int], like: Tensor) -> None:
        counts = [-(-count // _STRIDE) for count in frames]
        self.starts, self.size = [0], counts[0]
        for count in counts[1:]:
            self.starts.append(self.size + _GAP)
            self.size += _GAP + count
        frame_rows = [(_STRIDE * start, count) for start, count in zip(self.starts, frames, strict=True)]
        self.frame_gaps = on_device(_gaps(frame_rows, _STRIDE * self.size), like.device)
        rows = list(zip(self.starts, counts, strict=True))
        self.gaps = on_device(_gaps(rows, self.size), like.device)
        clip, segment, sizes, owners = _membership(rows, self.size)
        clip, segment = on_device(clip, like.device), on_device(segment, like.device)
        self.counts = on_device(torch.tensor(counts, dtype=like.dtype)[:, None], like.device)
        self.clip_means = _one_hot(clip, len(rows), like) / self.counts.T
        shares = _one_hot(segment, len(sizes), like) / on_device(torch.tensor(sizes, dtype=like.dtype), like.device)
        self.contexts = shares + self.clip_means.index_select(1, on_device(torch.tensor(owners), like.device))
        self.clip, self.segment = clip.clamp_(min=0), segment.clamp_(min=0)

    def lay(self, features: Sequence[Tensor]) -> Tensor:
        """B clips (T, M) to one image (1, 1, M, 2 x L), zero in the gaps."""
        image = features[0].new_zeros(features[0].shape[1], _STRIDE * self.size)
        for rows, start in zip(features, self.starts, strict=True):
            image[:, _STRIDE * start : _STRIDE * start + len(rows)] = rows.T
        return image[None, None]


def _gaps(rows: Sequence[tuple[int, int]], size: int) -> Tensor:
    empty = torch.ones(size, dtype=torch.bool)
    for start, count in rows:
        empty[start : start + count] = False
    return empty.nonzero()[:, 0]


def _membership(rows: Sequence[tuple[int, int]], size: int) -> tuple[Tensor, Tensor, list[int], list[int]]:
    """The clip and the segment of each position, -1 in a gap; the size and the clip of each segment."""
    clip, segment = torch.full((size,), -1), torch.full((size,), -1)
    sizes: list[int] = []
    owners: list[int] = []
    for number, (start, count) in enumerate(rows):
        clip[start : start + count] = number
        segment[start : start + count] = len(sizes) + torch.arange(count) // SEGMENT
        sizes += [min(SEGMENT, count - begin) for begin in range(0, count, SEGMENT)]
        owners += [number] * (len(sizes) - len(owners))
    return clip, segment, sizes, owners


def _one_hot(place: Tensor, width: int, like: Tensor) -> Tensor:
    """(L,) to (L, width): 1 at each place, nothing for -1."""
    return (place[:, None] == torch.arange(width, device=like.device)).to(like.dtype)


class FoldedCAMPPlus:
    """CAMPPlus's weights, folded once from those of its layers, on their device and in their dtype.

    Args:
        head: whose weights.
        xvector: likewise.
    """

    def __init__(self, head: Head, xvector: XVector) -> None:
        self._like = head.conv1.weight
        self._conv1 = _conv2d(head.conv1, head.bn1)
        residuals = cast(list[ResBlock], [*head.layer1, *head.layer2])
        self._residuals = [_residual(block) for block in residuals]
        self._conv2 = _conv2d(head.conv2, head.bn2)
        self._tdnn = _after(xvector.tdnn.linear.weight, xvector.tdnn.nonlinear.batchnorm)
        blocks = [cast(list[DenseLayer], [*b.children()]) for b in (xvector.block1, xvector.block2, xvector.block3)]
        self._blocks = [[_dense(layer) for layer in block] for block in blocks]
        transits = (xvector.transit1, xvector.transit2, xvector.transit3)
        norms = (None, None, xvector.out_nonlinear.batchnorm)
        self._transits = [
            _transit(transit.nonlinear.batchnorm, transit.linear.weight, norm)
            for transit, norm in zip(transits, norms, strict=True)
        ]
        self._dense = _after(xvector.dense.linear.weight[..., 0], cast(BatchNorm, xvector.dense.nonlinear[0]))

    def embed(self, features: Sequence[Tensor]) -> Tensor:
        """Vectors (B, E) of the clips' filter bank features (T, M), each T at least 3."""
        lanes = Lanes([len(rows) for rows in features], self._like)
        x = self._head(lanes.lay(features), lanes)
        y = F.conv1d(x[None], *self._tdnn, stride=_STRIDE, padding=self._tdnn.weight.shape[2] // 2)[0].relu_()
        scratch = Scratch(y)
        for layers, transit in zip(self._blocks, self._transits, strict=True):
            y = _dense_block(y, layers, lanes, scratch)
            bounded = transit.bounds.clamp(y, scratch.take("bounded", tuple(y.shape)))
            y = torch.addmm(transit.linear.bias, transit.linear.weight, bounded)
        return F.linear(_pool(y.relu_(), lanes), *self._dense)

    def _head(self, image: Tensor, lanes: Lanes) -> Tensor:
        """(1, 1, M, 2 x L) to (C x M / 8, 2 x L), zero in the gaps after every layer."""
        x = _conv(image, self._conv1).relu_()
        x = _empty(x, lanes.frame_gaps)
        for block in self._residuals:
            y = _empty(_conv(x, block.conv1, block.stride).relu_(), lanes.frame_gaps)
            y = _conv(y, block.conv2)
            y += _shortcut(x, block)
            x = _empty(y.relu_(), lanes.frame_gaps)
        x = _empty(_conv(x, self._conv2, 2).relu_(), lanes.frame_gaps)
        return x[0].flatten(0, 1)


def _conv(x: Tensor, layer: Layer, stride: int = 1) -> Tensor:
    return F.conv2d(x, *layer, stride=(stride, 1), padding=layer.weight.shape[-1] // 2)


def _shortcut(x: Tensor, block: Residual) -> Tensor:
    if block.shortcut is None:
        return x
    # As a linear layer: oneDNN's convolution of one tap and a stride takes three times as long.
    return F.linear(x[:, :, :: block.stride].permute(0, 2, 3, 1), *block.shortcut).permute(0, 3, 1, 2)


def _empty(x: Tensor, gaps: Tensor) -> Tensor:
    """`x` (..., L) itself, zero in the gaps."""
    return x.index_fill_(-1, gaps, 0.0)


def _dense_block(x: Tensor, layers: Sequence[Dense], lanes: Lanes, scratch: Scratch) -> Tensor:
    """(C, L) to (C + len(layers) x O, L): each layer writes its channels below those that it reads."""
    growth = len(layers[0].taps) // 3
    channels = len(x)
    stack = x.new_empty(channels + len(layers) * growth, lanes.size)
    stack[:channels] = x
    for layer in layers:
        _dense_layer(stack[:channels], layer, lanes, scratch, stack[channels : channels + growth])
        channels += growth
    return stack


def _dense_layer(x: Tensor, layer: Dense, lanes: Lanes, scratch: Scratch, out: Tensor) -> None:
    """(C, L) to `out` (O, L)."""
    bounded = layer.bounds.clamp(x, scratch.take("bounded", tuple(x.shape)))
    weight, bias = layer.bottleneck
    hidden = torch.addmm(bias, weight, bounded, out=scratch.take("hidden", (len(weight), lanes.size))).relu_()
    hidden = _empty(hidden, lanes.gaps)
    before, here, after = torch.mm(layer.taps, hidden, out=scratch.take("taps", (len(layer.taps), lanes.size))).chunk(3)
    out.copy_(here)
    out[:, layer.dilation :] += before[:, : -layer.dilation]
    out[:, : -layer.dilation] += after[:, layer.dilation :]
    context = torch.addmm(layer.context1.bias, layer.context1.weight, hidden @ lanes.contexts).relu_()
    gate = torch.addmm(layer.context2.bias, layer.context2.weight, context).sigmoid_()
    out *= gate.index_select(1, lanes.segment)


def _pool(x: Tensor, lanes: Lanes) -> Tensor:
    """Each clip's mean and sample deviation: (C, L) to (B, 2 C)."""
    means = x @ lanes.clip_means
    variances = (x - means.index_select(1, lanes.clip)).square_() @ lanes.clip_means
    deviations = (variances.T * (lanes.counts / (lanes.counts - 1))).sqrt_()
    return torch.cat((means.T, deviations), dim=1)


def _conv2d(conv: nn.Conv2d, norm: BatchNorm) -> Layer:
    weight, bias = _after(conv.weight, norm)
    # Channels last: oneDNN is an eighth faster on it than on channels first. Of a single channel torch cannot tell but
    # by its stride, and what comes out follows it.
    weight = weight.contiguous(memory_format=torch.channels_last)
    return Layer(weight if weight.shape[1] > 1 else weight.as_strided(weight.shape, (9, 1, 3, 1)), bias)


def _residual(block: ResBlock) -> Residual:
    shortcut = None
    if len(block.shortcut):
        conv, norm = cast(nn.Conv2d, block.shortcut[0]), cast(BatchNorm, block.shortcut[1])
        shortcut = _after(conv.weight[:, :, 0, 0], norm)
    return Residual(
        conv1=_conv2d(block.conv1, block.bn1),
        conv2=_conv2d(block.conv2, block.bn2),
        shortcut=shortcut,
        stride=block.conv1.stride[0],
    )


def _dense(layer: DenseLayer) -> Dense:
    cam = layer.cam_layer
    bounds, bottleneck = _transit(layer.nonlinear1.batchnorm, layer.linear1.weight, layer.nonlinear2.batchnorm)
    return Dense(
        bounds=bounds,
        bottleneck=bottleneck,
        taps=cam.linear_local.weight.permute(2, 0, 1).flatten(0, 1).contiguous(),
        dilation=cam.linear_local.dilation[0],
        context1=_pointwise(cam.linear1.weight, cast(Tensor, cam.linear1.bias)),
        context2=_pointwise(cam.linear2.weight, cast(Tensor, cam.linear2.bias)),
    )


def _pointwise(weight: Tensor, bias: Tensor) -> Layer:
    return Layer(weight[..., 0], bias[:, None])


def _transit(before: BatchNorm, weight: Tensor, after: BatchNorm | None) -> Transit:
    """Norm, ReLU, a pointwise convolution `weight` (O, K, 1) without bias, and the norm behind it, if any."""
    scale, shift = _affine(before)
    bound = (-shift / scale).to(weight.dtype)
    # A scale of nothing leaves a constant, and so does one that puts the bound out of the dtype's range.
    constant = ~torch.isfinite(bound)
    bound = bound.masked_fill(constant, 0.0)
    infinity = torch.full_like(bound, torch.inf)
    low, high = torch.where(scale < 0, -infinity, bound), torch.where(scale < 0, bound, infinity)
    matrix = weight[..., 0].detach().cpu().double()
    bias = matrix @ torch.where(constant, shift.relu(), shift)
    matrix = matrix * scale.masked_fill(constant, 0.0)
    if after is not None:
        outer, offset = _affine(after)
        matrix, bias = matrix * outer[:, None], bias * outer + offset
    bounds = Bounds(low[:, None].to(weight.device), high[:, None].to(weight) if bool((scale < 0).any()) else None)
    return Transit(bounds, Layer(matrix.to(weight), bias[:, None].to(weight)))


def _after(weight: Tensor, norm: BatchNorm) -> Layer:
    """A convolution without bias, and the norm that follows it."""
    scale, shift = _affine(norm)
    matrix = weight.detach().cpu().double() * scale.view(-1, *[1] * (weight.dim() - 1))
    return Layer(matrix.to(weight), shift.to(weight))


def _affine(norm: BatchNorm) -> tuple[Tensor, Tensor]:
    """A norm as scale and shift, (C,) float64 on the CPU: not every device has float64."""
    mean, variance = norm.running_mean.cpu().double(), norm.running_var.cpu().double()
    scale = torch.rsqrt(variance + NORM_EPS)
    if norm.weight is None or norm.bias is None:
        return scale, -mean * scale
    scale = scale * norm.weight.detach().cpu().double()
    return scale, norm.bias.detach().cpu().double() - mean * scale
