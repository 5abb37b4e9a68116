"""How far the vocoder looks: which mel frames the samples of one frame depend on.

Found by walking from the samples back through the convolutions as they are built, so that it holds for every
configuration. Between edges it is exact: a frame beyond has no weight at all.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import nn

if TYPE_CHECKING:
    from s3gen.stft import ShortTimeFourier
    from s3gen.vocoder import HiFTNetModel, ResBlock

Span = tuple[int, int]  # first and last position that is read


@dataclass(frozen=True, slots=True)
class Reach:
    """Mel frames around a frame that its samples depend on.

    Attributes:
        left: before it; of the source they depend on samples as far back, and on all F0 by the phase.
        right: after it, what F0 reads beyond the source's samples included.
    """

    left: int
    right: int


def reach(vocoder: HiFTNetModel) -> Reach:
    """The reach of a vocoder."""
    config = vocoder.config
    span = _through_inverse((0, config.frame_samples - 1), vocoder.stft)
    span = _through([vocoder.conv_post], span)
    spectra = []  # what each stage reads of the source's spectrum
    kernels = len(config.resblock_kernel_sizes)
    for stage in reversed(range(len(config.upsample_rates))):
        blocks: list[ResBlock] = list(vocoder.resblocks[stage * kernels : (stage + 1) * kernels])  # type: ignore[arg-type]
        span = _hull(_through(_convs(block), span) for block in blocks)
        source = [vocoder.source_downs[stage], *_convs(vocoder.source_resblocks[stage])]  # type: ignore[arg-type]
        spectra.append(_through(source, span))
        if stage == len(config.upsample_rates) - 1:
            span = span[0] - 1, span[1] - 1  # the frame that the left reflection adds
        span = _through([vocoder.ups[stage]], span)
    mel = _through([vocoder.conv_pre], span)
    samples = _through_forward(_hull(spectra), vocoder.stft)
    source_frames = samples[0] // config.frame_samples, samples[1] // config.frame_samples
    f0 = _through(vocoder.f0.convs, (source_frames[0], source_frames[1] + vocoder.source.lookahead_frames))
    return Reach(left=-min(mel[0], source_frames[0], f0[0] - source_frames[0]), right=max(mel[1], f0[1]))


def _convs(block: ResBlock) -> list[nn.Module]:
    return [conv for pair in zip(block.convs1, block.convs2, strict=True) for conv in pair]


def _through(layers: Iterable[nn.Module], span: Span) -> Span:
    """What the first of the layers reads for `span` of the last one's output."""
    first, last = span
    for layer in reversed(list(layers)):
        if isinstance(layer, nn.ConvTranspose1d):
            kernel, stride, padding = layer.kernel_size[0], layer.stride[0], int(layer.padding[0])
            first, last = -((kernel - 1 - padding - first) // stride), (last + padding) // stride
        elif isinstance(layer, nn.Conv1d):
            stride, padding = layer.stride[0], int(layer.padding[0])
            width = layer.dilation[0] * (layer.kernel_size[0] - 1)
            first, last = first * stride - padding, last * stride - padding + width
        else:
            raise TypeError(f"{type(layer).__name__} is no convolution")
    return first, last


def _through_inverse(samples: Span, stft: ShortTimeFourier) -> Span:
    """STFT frames whose windows cover the samples."""
    half = stft.n_fft // 2
    return -((stft.n_fft - 1 - half - samples[0]) // stft.hop), (samples[1] + half) // stft.hop


def _through_forward(frames: Span, stft: ShortTimeFourier) -> Span:
    """Samples that STFT frames are made of."""
    half = stft.n_fft // 2
    return frames[0] * stft.hop - half, frames[1] * stft.hop - half + stft.n_fft - 1


def _hull(spans: Iterable[Span]) -> Span:
    firsts, lasts = zip(*spans, strict=True)
    return min(firsts), max(lasts)
