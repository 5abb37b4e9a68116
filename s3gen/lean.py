"""The velocity estimator as it runs: the weights and numbers of `s3gen.estimator`, with less work around them.

Rows lie end to end (`s3gen.packing`), so that no position is computed in vain. What does not change over the solver's
steps is done once: what time adds in every block, and the conditioning's share of the first convolution; the noisy
mel's share is the same for both halves of guidance. Queries, keys and values come from one product, and attention
needs no mask.

Shape letters: H halves (2 with guidance, else 1), L packed positions, P = H x L, C channels, M mel bins, S steps,
R residual blocks, K inputs of a layer, O its outputs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from s3gen.attention import attend
from s3gen.estimator import CausalConv, Estimator, ResnetBlock, TransformerBlock
from s3gen.packing import GAP, Packing
from s3gen.scratch import Scratch


class Layer(NamedTuple):
    """Weight and bias of a linear layer (O, K), a convolution (O, K, 1, taps) or a norm (K,)."""

    weight: Tensor
    bias: Tensor


class Resnet(NamedTuple):
    """Weights of a residual block."""

    conv1: Layer
    norm1: Layer
    conv2: Layer
    norm2: Layer
    skip: Layer


class Block(NamedTuple):
    """Weights of a transformer block; `qkv` (3 x O, K) has no bias."""

    attn_norm: Layer
    qkv: Tensor
    out: Layer
    ff_norm: Layer
    ff_in: Layer
    ff_out: Layer


class Functions(NamedTuple):
    """The functions below that take most of the time, or compiled ones in their place."""

    before_attention: Callable[[Tensor, Block, Tensor | None], Tensor]
    after_attention: Callable[[Tensor, Tensor, Block, Tensor | None], Tensor]
    resnet: Callable[[Tensor, Tensor, Tensor, Resnet], Tensor]
    resnet_end: Callable[[Tensor, Tensor, Tensor, Tensor, Resnet], Tensor]


class Condition(NamedTuple):
    """What stays the same over the steps.

    Attributes:
        first: (H, L, C): the conditioning's share of the first convolution, bias included.
        skip: (H, L, C): its share of the first residual block's skip, bias included.
        times: (S, R, C): what each step's time adds in each residual block.
        spans: (S,): how long each step is.
    """

    first: Tensor
    skip: Tensor
    times: Tensor
    spans: Tensor


class LeanEstimator:
    """An estimator's weights, fused and cast once; those that need neither are shared with it.

    Args:
        estimator: whose weights.
        dtype: of weights and activations.
        functions: what it is made of: `PLAIN`, or compiled.
    """

    def __init__(self, estimator: Estimator, dtype: torch.dtype, functions: Functions) -> None:
        stages = (estimator.down, *estimator.mid, estimator.up)
        self.dtype = dtype
        self._run = functions
        self._plain = estimator
        self._plain_resnets = [stage.resnet for stage in stages]
        self._heads = estimator.heads
        self._resnets = [_resnet(stage.resnet, dtype) for stage in stages]
        self._blocks = [[_block(block, dtype) for block in stage.blocks] for stage in stages]
        self._down, self._up, self._last = (
            _conv(conv, dtype) for conv in (estimator.down_conv, estimator.up_conv, estimator.final_conv)
        )
        self._norm, self._proj = _layer(estimator.final_norm, dtype), _layer(estimator.final_proj, dtype)
        # The first block's input is the mel on its way and, behind it, what it is conditioned on.
        mels = estimator.final_proj.out_features
        conv, skip = self._resnets[0].conv1, self._resnets[0].skip
        self._mel_conv, self._given_conv = (part.contiguous() for part in conv.weight.tensor_split([mels], dim=1))
        self._mel_skip, self._given_skip = (part.contiguous() for part in skip.weight.tensor_split([mels], dim=1))

    def condition(self, given: Tensor, starts: Tensor, ends: Tensor, packing: Packing) -> Condition:
        """The work that all steps share.

        Args:
            given: (L, 3 x M): mu, speaker and prompt; zeros where there is no row. A second copy of the packing is
                guidance's unconditional half, for which they are all zero.
            starts: (S,), the time at which each step begins.
            ends: (S,), at which it ends.
            packing: of the rows.
        """
        first, given = self._resnets[0], given.to(self.dtype)
        hidden = causal_conv(given, self._given_conv, first.conv1.bias)
        skip = F.linear(given, self._given_skip, first.skip.bias)
        times = torch.stack([self._plain.embed_time(start, end) for start, end in zip(starts, ends, strict=True)])
        added = [resnet.time_proj(F.mish(times)) for resnet in self._plain_resnets]
        free = packing.copies - 1
        return Condition(
            first=torch.stack([hidden, *[first.conv1.bias.expand_as(hidden)] * free]),
            skip=torch.stack([skip, *[first.skip.bias.expand_as(skip)] * free]),
            times=torch.stack(added, dim=1).to(self.dtype),
            spans=ends - starts,
        )

    def velocity(self, x: Tensor, condition: Condition, step: int, packing: Packing, scratch: Scratch) -> Tensor:
        """dx/dt.

        Args:
            x: (L, M), zeros where there is no row.
            condition: of `condition`.
            step: which of the S.
            packing: of the rows.
            scratch: memory that is used again and again.

        Returns:
            (H, L, M), in the type of `x`; zeros where there is no row.
        """
        times = condition.times[step]
        hidden = skip = self._stage(0, self._first(x.to(self.dtype), condition, times[0], packing), packing, scratch)
        hidden = causal_conv(packing.empty(hidden), *self._down)
        for number in range(1, len(self._resnets) - 1):
            hidden = self._run.resnet(hidden, times[number], packing.gaps, self._resnets[number])
            hidden = self._stage(number, hidden, packing, scratch)
        hidden = torch.cat((hidden, skip), dim=1)
        hidden = self._run.resnet(hidden, times[-1], packing.gaps, self._resnets[-1])
        hidden = self._stage(-1, hidden, packing, scratch)
        hidden = causal_conv(packing.empty(hidden), *self._up)
        hidden = causal_conv(packing.empty(hidden), *self._last)
        hidden = F.linear(mish(_norm(hidden, self._norm)), *self._proj)
        return packing.empty(hidden).unflatten(0, (packing.copies, -1)).to(x.dtype)

    def _first(self, x: Tensor, condition: Condition, time: Tensor, packing: Packing) -> Tensor:
        hidden = (causal_conv(x, self._mel_conv, None) + condition.first).flatten(0, 1)
        skip = (F.linear(x, self._mel_skip) + condition.skip).flatten(0, 1)
        return self._run.resnet_end(hidden, skip, time, packing.gaps, self._resnets[0])

    def _stage(self, number: int, hidden: Tensor, packing: Packing, scratch: Scratch) -> Tensor:
        for weights in self._blocks[number]:
            qkv = scratch.take("qkv", (len(hidden), len(weights.qkv)))
            attended = attend(self._run.before_attention(hidden, weights, qkv), self._heads, packing, scratch)
            inner = scratch.take("inner", (len(hidden), len(weights.ff_in.bias)))
            hidden = self._run.after_attention(hidden, attended, weights, inner)
        return hidden


def before_attention(x: Tensor, weights: Block, out: Tensor | None) -> Tensor:
    """(P, C) to queries, keys and values (P, 3 x inner), in `out` if there is one."""
    return torch.mm(_norm(x, weights.attn_norm), weights.qkv.T, out=out)


def after_attention(x: Tensor, attended: Tensor, weights: Block, out: Tensor | None) -> Tensor:
    """A block's input (P, C), which is overwritten, and what its attention gave (P, inner) to its output (P, C).

    What the feed-forward layer holds between (P, 4 x C) is in `out`, if there is one.
    """
    x = x.addmm_(attended, weights.out.weight.T).add_(weights.out.bias)
    inner = torch.addmm(weights.ff_in.bias, _norm(x, weights.ff_norm), weights.ff_in.weight.T, out=out)
    return x.addmm_(torch.ops.aten.gelu_(inner), weights.ff_out.weight.T).add_(weights.ff_out.bias)


def resnet(x: Tensor, time: Tensor, gaps: Tensor, weights: Resnet) -> Tensor:
    """A residual block: (P, K), which is zeroed at `gaps`, and what time adds (C,) to (P, C)."""
    hidden = causal_conv(x.index_fill_(0, gaps, 0.0), *weights.conv1)
    return resnet_end(hidden, F.linear(x, *weights.skip), time, gaps, weights)


def resnet_end(hidden: Tensor, skip: Tensor, time: Tensor, gaps: Tensor, weights: Resnet) -> Tensor:
    """What follows a residual block's first convolution."""
    hidden = mish(_norm(hidden, weights.norm1)).add_(time)
    hidden = causal_conv(hidden.index_fill_(0, gaps, 0.0), *weights.conv2)
    return mish(_norm(hidden, weights.norm2)).add_(skip)


def causal_conv(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Three taps over the positions of (P, K), the last of them here: (P, O)."""
    # As an image of one row with its channels last, which is how x lies in memory: nothing is transposed.
    image = x.T[None, :, None, :]
    return F.conv2d(image, weight, bias, padding=(0, GAP))[0, :, 0, : len(x)].T


def mish(x: Tensor) -> Tensor:
    """x tanh(softplus(x)), which is x n / (n + 2) with n = e^x (e^x + 2)."""
    if x.device.type != "cpu" or x.dtype not in (torch.float32, torch.float64):
        return F.mish(x)
    # A third of the time of torch's own on a CPU. From 20 on the quotient is 1, in float64 too.
    power = x.clamp(max=20.0).exp_()
    above = torch.addcmul(power, power, power, value=0.5)
    return torch.div(above, above + 1.0, out=power).mul_(x)


PLAIN = Functions(before_attention, after_attention, resnet, resnet_end)


def _norm(x: Tensor, norm: Layer) -> Tensor:
    return F.layer_norm(x, (x.shape[1],), *norm)


def _layer(module: nn.Linear | nn.LayerNorm, dtype: torch.dtype) -> Layer:
    return Layer(module.weight.detach().to(dtype), module.bias.detach().to(dtype))


def _conv(module: CausalConv, dtype: torch.dtype) -> Layer:
    weight, bias = (value.detach().to(dtype) for value in (module.weight, module.bias) if value is not None)
    return Layer(weight[:, :, None, :].contiguous(memory_format=torch.channels_last), bias)


def _resnet(block: ResnetBlock, dtype: torch.dtype) -> Resnet:
    return Resnet(
        conv1=_conv(block.conv1, dtype),
        norm1=_layer(block.norm1, dtype),
        conv2=_conv(block.conv2, dtype),
        norm2=_layer(block.norm2, dtype),
        skip=_layer(block.skip_proj, dtype),
    )


def _block(block: TransformerBlock, dtype: torch.dtype) -> Block:
    return Block(
        attn_norm=_layer(block.attn_norm, dtype),
        qkv=torch.cat([layer.weight.detach() for layer in (block.query, block.key, block.value)]).to(dtype),
        out=_layer(block.out, dtype),
        ff_norm=_layer(block.ff_norm, dtype),
        ff_in=_layer(block.ff_in, dtype),
        ff_out=_layer(block.ff_out, dtype),
    )
