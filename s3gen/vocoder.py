"""HiFTNet: log-mel to waveform by F0, a harmonic source and an inverse STFT.

Reference: chatterbox-tts 0.1.7, ``models/s3gen/hifigan.py`` and ``models/s3gen/f0_predictor.py``;
HiFTNet: Li et al., arXiv 2309.09493. Weight norm is folded into plain weights when a checkpoint is read.

A convolution reads its neighbours, so in a right-padded batch every layer's output is zeroed behind each row's end, at
that layer's rate; the source's STFT reflects at each row's own end, and the inverse STFT's envelope ends with the row.

Shape letters: B rows, T mel frames, M mel bins, C channels, L positions at some rate, H harmonics (fundamental
included), S samples, R STFT frames, Q frequency bins.
"""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from s3gen import checkpoint, names
from s3gen import noise as noises
from s3gen.config import RANDOM_MODELS, HiFTNetConfig, S3GenConfig
from s3gen.noise import Stream
from s3gen.ragged import length_mask, zero_padding
from s3gen.weights import random_weights

_PREFIX = "mel2wav."  # before the vocoder's names in a whole model's checkpoint
_MAX_MAGNITUDE = 1e2  # the reference clips the spectrum's magnitude here
_MIN_ENVELOPE = 1e-11  # below it no window covers a sample; torch.istft's own threshold


class HiFTNetModel(nn.Module):
    """The vocoder: `f0` and `source` are its first two stages, `decode` the third, `inference` all of them."""

    def __init__(self, config: HiFTNetConfig) -> None:
        super().__init__()
        self.config = config
        self.f0 = F0Predictor(config.in_channels, config.f0_predictor_cond_channels)
        self.source = HarmonicSource(config)
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
        """Load the vocoder alone: its own folder, or the vocoder of a whole model's checkpoint.

        Arguments and errors are those of `S3GenModel.from_pretrained`.
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
        return model.to(device)

    @classmethod
    def _random(cls, config: HiFTNetConfig) -> HiFTNetModel:
        with torch.device("meta"):
            model = cls(config)
        weights = random_weights(checkpoint.published_shapes(model, _PREFIX))
        checkpoint.assign(model, weights, source="random weights", prefix=_PREFIX)
        return model

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Write ``config.json`` and ``model.safetensors`` into `folder`, which is made if needed."""
        weights = checkpoint.published_weights(self, _PREFIX)
        plain = {name.removeprefix(_PREFIX): weight for name, weight in weights.items()}
        checkpoint.save(folder, plain, self.config.to_dict())

    @torch.no_grad()
    def inference(
        self,
        speech_feat: Tensor,
        cache_source: Tensor | None = None,
        *,
        lengths: Sequence[int] | None = None,
        seed: int | Sequence[int] = 0,
    ) -> tuple[Tensor, Tensor]:
        """Mel to waveform.

        Args:
            speech_feat: (B, M, T) log-mel, right-padded when `lengths` is given.
            cache_source: (B or 1, 1, s) source samples that replace the first s that are made here (streaming).
            lengths: B frames per row; all T when None.
            seed: of phases and noise, one for all rows or one each.

        Returns:
            The waveform (B, S) within the configured limit, and the source (B, 1, S), S = frame samples x T; zeros
            behind each row's end.

        Raises:
            ValueError: a shape, length, seed or cache that does not fit.
        """
        counts = self._check_mel(speech_feat, lengths)
        if speech_feat.shape[2] == 0:
            empty = speech_feat.new_zeros(len(speech_feat), 0)
            return empty, empty[:, None, :]
        audible = length_mask([count * self.config.frame_samples for count in counts], speech_feat.device)
        f0 = self.f0(speech_feat, counts)
        source = zero_padding(self.source(f0, seed=seed), audible)
        if cache_source is not None and cache_source.shape[2]:
            source = _with_cache(source, cache_source)
        wave = self.decode(speech_feat, source, counts)
        return zero_padding(wave[:, None], audible)[:, 0], source

    def decode(self, mel: Tensor, source: Tensor, lengths: Sequence[int] | None = None) -> Tensor:
        """Mel (B, M, T) and source (B, 1, S) to the waveform (B, S)."""
        counts = self._check_mel(mel, lengths)
        masks = self._masks(counts, mel.device)
        spectrum = zero_padding(self.stft(source[:, 0], [n * self.config.frame_samples for n in counts]), masks[-1])
        x = zero_padding(self.conv_pre(zero_padding(mel, masks[0])), masks[0])
        for stage, mask in enumerate(masks[1:]):
            x = self._upsample(x, spectrum, stage, mask)
        # The reference leaves the slope of this last activation at torch's default.
        spectrum = self.conv_post(F.leaky_relu(x))
        wave = self._to_wave(spectrum, masks[-1])
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


def _with_cache(source: Tensor, cache: Tensor) -> Tensor:
    if cache.dim() != 3 or cache.shape[0] not in (1, len(source)) or cache.shape[1] != 1:
        raise ValueError(f"cache_source must have shape (1 or {len(source)}, 1, samples), not {tuple(cache.shape)}")
    if cache.shape[2] > source.shape[2]:
        raise ValueError(f"cache_source has {cache.shape[2]} samples, the source only {source.shape[2]}")
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

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, L) to (B, C, L); zero stays zero."""
        alpha = self.alpha[:, None]
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


class HarmonicSource(nn.Module):
    """Sines at F0 and its harmonics where it is voiced, noise elsewhere, merged to one signal.

    The reference sums the phase over samples in float32. Here it is summed over mel frames in float64 and wrapped,
    which is a hundred times closer to the exact phase and does not depend on the order of a device's summation.
    """

    def __init__(self, config: HiFTNetConfig) -> None:
        super().__init__()
        self.harmonics = config.nb_harmonics + 1
        self.frame_samples = config.frame_samples
        self.sampling_rate = config.sampling_rate
        self.amplitude = config.nsf_alpha
        self.noise_std = config.nsf_sigma
        self.voiced_threshold = config.nsf_voiced_threshold
        self.linear = nn.Linear(self.harmonics, 1)

    def forward(
        self, f0: Tensor, *, phase: Tensor | None = None, noise: Tensor | None = None, seed: int | Sequence[int] = 0
    ) -> Tensor:
        """The source signal.

        Args:
            f0: (B, T) in Hz; a frame is voiced above the configured threshold.
            phase: (B, H, 1) in radians at the start, that of the fundamental 0; drawn from `seed` when None.
            noise: (B, H, S) standard normal, S = frame samples x T; drawn from `seed` when None.
            seed: one for all rows, or one each.

        Returns:
            (B, 1, S) within -1 .. 1.
        """
        seeds = _seeds(seed, len(f0))
        phase = self.draw_phase(seeds, f0) if phase is None else phase.to(f0)
        noise = self.draw_noise(seeds, f0) if noise is None else noise.to(f0)
        samples = f0.shape[1] * self.frame_samples
        if phase.shape != (len(f0), self.harmonics, 1) or noise.shape != (len(f0), self.harmonics, samples):
            raise ValueError(
                f"phase {tuple(phase.shape)} and noise {tuple(noise.shape)} must be "
                f"{(len(f0), self.harmonics, 1)} and {(len(f0), self.harmonics, samples)} for F0 {tuple(f0.shape)}"
            )
        sines = self.amplitude * torch.sin(2 * math.pi * self._turns(f0) + phase)
        voiced = (f0 > self.voiced_threshold).to(f0.dtype).repeat_interleave(self.frame_samples, dim=1)[:, None, :]
        spread = voiced * self.noise_std + (1 - voiced) * self.amplitude / 3
        waves = sines * voiced + spread * noise
        return torch.tanh(self.linear(waves.transpose(1, 2))).transpose(1, 2)

    def draw_phase(self, seeds: Sequence[int], like: Tensor) -> Tensor:
        """Starting phases (B, H, 1) in -pi .. pi, that of the fundamental 0."""
        drawn = noises.uniform(seeds, Stream.PHASE, 1, self.harmonics, device=like.device)[:, 0, :, None]
        phase = (2 * math.pi * (drawn - 0.5)).to(like.dtype)
        phase[:, 0] = 0
        return phase

    def draw_noise(self, seeds: Sequence[int], like: Tensor) -> Tensor:
        """Noise (B, H, S) for an F0 (B, T)."""
        channels = self.frame_samples * self.harmonics
        drawn = noises.normal(seeds, Stream.SOURCE, like.shape[1], channels, device=like.device)
        return drawn.view(len(seeds), -1, self.harmonics).transpose(1, 2).to(like.dtype)

    def _turns(self, f0: Tensor) -> Tensor:
        """Phase of every harmonic at every sample, in turns 0 .. 1 (about): (B, H, S)."""
        exact = f0.dtype if f0.device.type == "mps" else torch.float64
        harmonic = torch.arange(1, self.harmonics + 1, device=f0.device)[None, :, None]
        step = f0.to(exact)[:, None, :] * harmonic / self.sampling_rate  # turns per sample, (B, H, T)
        before = (torch.cumsum(step, dim=2) - step) * self.frame_samples
        inside = torch.arange(1, self.frame_samples + 1, dtype=f0.dtype, device=f0.device)
        within = (before % 1).to(f0.dtype)[..., None] + step.to(f0.dtype)[..., None] * inside
        return (within % 1).flatten(2)


def _seeds(seed: int | Sequence[int], rows: int) -> list[int]:
    seeds = [seed] * rows if isinstance(seed, int) else [int(each) for each in seed]
    if len(seeds) != rows:
        raise ValueError(f"{len(seeds)} seeds were given for {rows} rows")
    return seeds


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
        last = torch.tensor(lengths, device=x.device)[:, None] - 1
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
