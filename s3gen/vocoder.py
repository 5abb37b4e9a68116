"""HiFTNet: log-mel to waveform by F0, a harmonic source and an inverse STFT.

Reference: chatterbox-tts 0.1.7, ``models/s3gen/hifigan.py``; HiFTNet: Li et al., arXiv 2309.09493.
Weight norm is folded into plain weights when a checkpoint is read.

A convolution reads its neighbours, so in a right-padded batch every layer's output is zeroed behind each row's end, at
that layer's rate; the source's STFT reflects at each row's own end, and the inverse STFT's envelope ends with the row.

Shape letters: B rows, T mel frames, M mel bins, C channels, L positions at some rate, H harmonics (fundamental
included), S samples, R STFT frames, Q frequency bins.
"""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from s3gen import checkpoint, names, saving
from s3gen.compiled import Compiler
from s3gen.config import RANDOM_MODELS, HiFTNetConfig, S3GenConfig
from s3gen.f0 import F0Predictor
from s3gen.interpolated_source import InterpolatedSource
from s3gen.model_card import model_card
from s3gen.precision import float32_products
from s3gen.ragged import length_mask, zero_padding
from s3gen.source import HarmonicSource
from s3gen.stft import ShortTimeFourier
from s3gen.weights import random_weights

_PREFIX = "mel2wav."  # before the vocoder's names in a whole model's checkpoint
# By `s3gen.config.HARMONIC_SOURCES`.
_SOURCES: dict[str, type[HarmonicSource]] = {"sinegen": HarmonicSource, "sinegen2": InterpolatedSource}
_MAX_MAGNITUDE = 1e2  # the reference clips the spectrum's magnitude here


class HiFTNetModel(nn.Module):
    """The vocoder: `f0` and `source` are its first two stages, `decode` the third, `inference` all of them.

    Attributes:
        origin: what the weights were read from, in words; None when they were not.
    """

    origin: str | None = None

    def __init__(self, config: HiFTNetConfig) -> None:
        super().__init__()
        self.config = config
        self.tf32 = False  # the convolutions of `decode` on CUDA; F0 and source stay as they are
        self.f0 = F0Predictor(config.in_channels, config.f0_predictor_cond_channels)
        self.source = _SOURCES[config.harmonic_source](config)
        self.stft = ShortTimeFourier(config.istft_n_fft, config.istft_hop_len)
        self.conv_pre = nn.Conv1d(config.in_channels, config.base_channels, 7, padding=3)
        self.ups = nn.ModuleList(_upsamplings(config))
        self.source_downs = nn.ModuleList(_source_convs(config))
        self.source_resblocks = nn.ModuleList(_source_resblocks(config))
        self.resblocks = nn.ModuleList(_resblocks(config))
        last = _stage_channels(config, len(config.upsample_rates) - 1)
        self.conv_post = nn.Conv1d(last, config.istft_n_fft + 2, 7, padding=3)

    @classmethod
    def from_pretrained(
        cls,
        where: str | os.PathLike[str],
        *,
        file: str | None = None,
        device: str | torch.device = "cpu",
        storage_options: Mapping[str, Any] | None = None,
    ) -> HiFTNetModel:
        """Load the vocoder alone: its own folder, that of a whole model's checkpoint, or CosyVoice2's ``hift.pt``.

        Arguments and errors are those of `S3GenModel.from_pretrained`; in a folder without the rest of CosyVoice2's
        files, ``file="hift.pt"``.
        """
        if os.fspath(where) in RANDOM_MODELS:
            return cls._random(RANDOM_MODELS[os.fspath(where)]().vocoder).to(device)
        found = checkpoint.read(where, file=file, storage_options=storage_options)
        weights = {name: value for name, value in found.weights.items() if name.startswith(_PREFIX)}
        if not weights:  # saved alone, without the prefix
            published = {_PREFIX + name: value for name, value in found.weights.items()}
            weights = {names.to_published(names.to_ours(name)): value for name, value in published.items()}
        with torch.device("meta"):
            model = cls(_vocoder_config(found.config))
        checkpoint.assign(model, weights, source=found.source, prefix=_PREFIX)
        model.origin = found.origin
        return model.to(device)

    @classmethod
    def _random(cls, config: HiFTNetConfig) -> HiFTNetModel:
        with torch.device("meta"):
            model = cls(config)
        weights = random_weights(checkpoint.published_shapes(model, _PREFIX))
        checkpoint.assign(model, weights, source="random weights", prefix=_PREFIX)
        return model

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Write ``config.json``, ``model.safetensors`` and a card into a local folder, as `S3GenModel` does.

        Raises:
            ValueError: `folder` is a file or holds a checkpoint of another name.
        """
        weights = checkpoint.published_weights(self, _PREFIX)
        plain = {name.removeprefix(_PREFIX): weight for name, weight in weights.items()}
        config = self.config.to_dict()
        card = model_card(plain, config, file=checkpoint.WEIGHTS_FILE, origin=self.origin)
        saving.save(folder, plain, config, card=card)

    def prepare(self, *, tf32: bool, compiler: Compiler | None) -> None:
        """Choose how `decode` computes: its convolutions in TF32 on CUDA, its activations compiled."""
        self.tf32 = tf32
        activation = snake if compiler is None else compiler(snake)
        for module in self.modules():
            if isinstance(module, Snake):
                module.function = activation

    @torch.no_grad()
    def inference(
        self,
        speech_feat: Tensor,
        cache_source: Tensor | None = None,
        *,
        lengths: Sequence[int] | None = None,
        seed: int | Sequence[int] = 0,
        start: int | Sequence[int] = 0,
    ) -> tuple[Tensor, Tensor]:
        """Mel to waveform.

        Args:
            speech_feat: (B, M, T) log-mel, right-padded when `lengths` is given.
            cache_source: (B or 1, 1, s) source samples that replace the first s that are made here (streaming), of a
                shorter row all of its own.
            lengths: B frames per row; all T when None.
            seed: of phases and noise, one for all rows or one each.
            start: frames of the same utterance that come before, one for all rows or one each; noise is drawn by it.

        Returns:
            The waveform (B, S) within the configured limit, and the source (B, 1, S), S = frame samples x T; zeros
            behind each row's end.

        Raises:
            ValueError: a shape, length, seed or cache that does not fit.
        """
        counts = self._check_mel(speech_feat, lengths)
        if cache_source is not None:
            check_cache(cache_source, len(counts), speech_feat.shape[2] * self.config.frame_samples)
        if speech_feat.shape[2] == 0:
            empty = speech_feat.new_zeros(len(speech_feat), 0)
            return empty, empty[:, None, :]
        audible = length_mask([count * self.config.frame_samples for count in counts], speech_feat.device)
        f0 = self.f0(speech_feat, counts)
        source = self.source(f0, seed=seed, start=start)
        if cache_source is not None:
            source = _with_cache(source, cache_source)
        source = zero_padding(source, audible)
        wave = self.decode(speech_feat, source, counts)
        return zero_padding(wave[:, None], audible)[:, 0], source

    @torch.no_grad()
    def decode(self, mel: Tensor, source: Tensor, lengths: Sequence[int] | None = None) -> Tensor:
        """Mel (B, M, T) and source (B, 1, S) to the waveform (B, S)."""
        counts = self._check_mel(mel, lengths)
        masks = self._masks(counts, mel.device)
        with float32_products(mel.device, tf32=self.tf32):
            spectrum = zero_padding(self.stft(source[:, 0], [n * self.config.frame_samples for n in counts]), masks[-1])
            x = zero_padding(self.conv_pre(zero_padding(mel, masks[0])), masks[0])
            for stage, mask in enumerate(masks[1:]):
                x = self._upsample(x, spectrum, stage, mask)
            # The reference leaves the slope of this last activation at torch's default.
            wave = self._to_wave(self.conv_post(F.leaky_relu(x)), masks[-1])
        return wave.clamp(-self.config.audio_limit, self.config.audio_limit)

    def _upsample(self, x: Tensor, spectrum: Tensor, stage: int, mask: Tensor | None) -> Tensor:
        x = self.ups[stage](F.leaky_relu(x, self.config.lrelu_slope))
        if stage == len(self.ups) - 1:
            x = F.pad(x, (1, 0), mode="reflect")
        aligned = zero_padding(self.source_downs[stage](spectrum), mask)
        x = zero_padding(x + self.source_resblocks[stage](aligned, mask), mask)
        kernels = len(self.config.resblock_kernel_sizes)
        blocks = self.resblocks[stage * kernels : (stage + 1) * kernels]
        return zero_padding(functools.reduce(torch.add, (block(x, mask) for block in blocks)) / kernels, mask)

    def _to_wave(self, spectrum: Tensor, mask: Tensor | None) -> Tensor:
        bins = self.config.istft_n_fft // 2 + 1
        magnitude = zero_padding(spectrum[:, :bins].exp().clamp(max=_MAX_MAGNITUDE), mask)
        # A sine as phase is the reference's own choice: it keeps the angle within one radian.
        phase = spectrum[:, bins:].sin()
        return self.stft.inverse(torch.polar(magnitude, phase), mask)

    def _masks(self, lengths: Sequence[int], device: torch.device) -> list[Tensor | None]:
        """One mask per rate: mel, then each upsampling; the last has the frame that the left reflection adds."""
        masks = [length_mask(lengths, device)]
        rate = 1
        for stage, factor in enumerate(self.config.upsample_rates):
            rate *= factor
            extra = int(stage == len(self.ups) - 1)
            masks.append(length_mask([length * rate + extra for length in lengths], device))
        return masks

    def _check_mel(self, mel: Tensor, lengths: Sequence[int] | None) -> list[int]:
        if mel.dim() != 3 or mel.shape[1] != self.config.in_channels:
            raise ValueError(f"the mel must have shape (B, {self.config.in_channels}, T), not {tuple(mel.shape)}")
        counts = [mel.shape[2]] * len(mel) if lengths is None else [int(length) for length in lengths]
        if len(counts) != len(mel) or max(counts, default=0) != mel.shape[2] or min(counts, default=0) < 0:
            raise ValueError(f"lengths {counts} do not fit a mel of shape {tuple(mel.shape)}: the longest must be T")
        return counts


def _vocoder_config(config: Mapping[str, Any] | None) -> HiFTNetConfig:
    """The vocoder of whatever configuration came with a checkpoint; published single files bring none."""
    if config is None:
        return S3GenConfig().vocoder
    if config.get("model_type") == HiFTNetConfig.model_type:
        return HiFTNetConfig.from_dict(config)
    return S3GenConfig.from_dict(config).vocoder


def check_cache(cache: Tensor, rows: int, samples: int) -> None:
    """Whether a cached source fits a batch of so many rows, the longest of so many samples.

    Raises:
        ValueError: it is no tensor, of another shape, or longer.
    """
    if not isinstance(cache, Tensor):
        raise ValueError(f"cache_source must be a tensor, not {type(cache).__name__}")
    if cache.dim() != 3 or cache.shape[0] not in (1, rows) or cache.shape[1] != 1:
        wanted = "1" if rows == 1 else f"1 or {rows}"
        raise ValueError(f"cache_source must have shape ({wanted}, 1, samples), not {tuple(cache.shape)}")
    if cache.shape[2] > samples:
        raise ValueError(f"cache_source has {cache.shape[2]} samples, the source only {samples}")


def _with_cache(source: Tensor, cache: Tensor) -> Tensor:
    cache = cache.to(source).expand(len(source), -1, -1)
    return torch.cat((cache, source[:, :, cache.shape[2] :]), dim=2)


def _stage_channels(config: HiFTNetConfig, stage: int) -> int:
    return config.base_channels // 2 ** (stage + 1)


def _upsamplings(config: HiFTNetConfig) -> list[nn.Module]:
    rates = zip(config.upsample_rates, config.upsample_kernel_sizes, strict=True)
    return [
        nn.ConvTranspose1d(
            2 * _stage_channels(config, stage),
            _stage_channels(config, stage),
            kernel,
            rate,
            padding=(kernel - rate) // 2,
        )
        for stage, (rate, kernel) in enumerate(rates)
    ]


def _source_convs(config: HiFTNetConfig) -> list[nn.Module]:
    """Bring the source's spectrum, which has the last stage's rate, down to each stage's."""
    convs: list[nn.Module] = []
    for stage in range(len(config.upsample_rates)):
        down = math.prod(config.upsample_rates[stage + 1 :])
        kernel, padding = (1, 0) if down == 1 else (2 * down, down // 2)
        convs.append(nn.Conv1d(config.istft_n_fft + 2, _stage_channels(config, stage), kernel, down, padding))
    return convs


def _source_resblocks(config: HiFTNetConfig) -> list[nn.Module]:
    sizes = zip(config.source_resblock_kernel_sizes, config.source_resblock_dilation_sizes, strict=True)
    return [ResBlock(_stage_channels(config, stage), *size) for stage, size in enumerate(sizes)]


def _resblocks(config: HiFTNetConfig) -> list[nn.Module]:
    sizes = list(zip(config.resblock_kernel_sizes, config.resblock_dilation_sizes, strict=True))
    stages = range(len(config.upsample_rates))
    return [ResBlock(_stage_channels(config, stage), *size) for stage in stages for size in sizes]


class Snake(nn.Module):
    """x + sin^2(alpha x) / alpha (Ziyin et al., arXiv 2006.08195)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.ones(channels))
        self.function: Callable[[Tensor, Tensor], Tensor] = snake

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, L) to (B, C, L); zero stays zero."""
        return self.function(x, self.alpha[:, None])


def snake(x: Tensor, alpha: Tensor) -> Tensor:
    """`Snake` of (B, C, L), given its alpha (C, 1)."""
    # In place where it can be: on a CPU these activations take a fifth of the vocoder's time.
    return torch.addcmul(x, (x * alpha).sin_().square_(), 1 / (alpha + 1e-9))


class ResBlock(nn.Module):
    """Pairs of convolutions, the first of each dilated, with Snake before both; residual around each pair."""

    def __init__(self, channels: int, kernel: int, dilations: Sequence[int]) -> None:
        super().__init__()
        self.convs1 = nn.ModuleList(
            nn.Conv1d(channels, channels, kernel, dilation=dilation, padding=dilation * (kernel - 1) // 2)
            for dilation in dilations
        )
        self.convs2 = nn.ModuleList(nn.Conv1d(channels, channels, kernel, padding=(kernel - 1) // 2) for _ in dilations)
        self.activations1 = nn.ModuleList(Snake(channels) for _ in dilations)
        self.activations2 = nn.ModuleList(Snake(channels) for _ in dilations)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """(B, C, L) to (B, C, L). The padding must be zero on entry; it is not on return."""
        pairs = zip(self.activations1, self.convs1, self.activations2, self.convs2, strict=True)
        for pair, (snake1, conv1, snake2, conv2) in enumerate(pairs):
            if pair:
                x = zero_padding(x, mask)
            x = conv2(snake2(zero_padding(conv1(snake1(x)), mask))) + x
        return x
