"""What the networks hear: resampled audio, and the three kinds of features that are made from it.

| features | of audio at | for | reference |
|---|---|---|---|
| `PromptMel` | 24 kHz | the flow's prompt | chatterbox-tts 0.1.7, models/s3gen/utils/mel.py |
| `TokenizerMel` | 16 kHz | the tokenizer | chatterbox-tts 0.1.7, models/s3tokenizer/s3tokenizer.py |
| `SpeakerFeatures` | 16 kHz | the speaker encoder | chatterbox-tts 0.1.7, models/s3gen/xvector.py |

All give frames first. Each frame is a matter of its own, so those of all clips go through a transform together, end to
end: nothing is padded. Windows and mel filters are buffers that no state dict holds: they are computed here, on the CPU
even when the model is built under another device context, and follow the module.

Shape letters: N samples, T frames (of a clip, or of all), M mel bins, K frequency bins, W samples of a frame.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from s3gen._torchaudio import Resample, fbank, mel_banks
from s3gen.constants import LOUDEST, MEL_BINS, MEL_HOP, SAMPLE_RATE, TOKENIZER_HOP, TOKENIZER_RATE
from s3gen.precision import float32_default, strict_float32

_PROMPT_WINDOW = 4 * MEL_HOP  # samples, and the FFT's size
_PROMPT_PAD = (_PROMPT_WINDOW - MEL_HOP) // 2  # samples that are mirrored at each end
_PROMPT_FMAX = 8_000.0  # Hz
_PROMPT_POWER_FLOOR = 1e-9
_PROMPT_MEL_FLOOR = 1e-5

_TOKENIZER_WINDOW = 400  # samples, and the FFT's size
_TOKENIZER_POWER_FLOOR = 1e-10
_TOKENIZER_RANGE = 8.0  # decades below the clip's loudest bin

_SPEAKER_WINDOW = 400  # samples, 25 ms
_SPEAKER_HOP = 160  # samples, 10 ms
_SPEAKER_FFT = 512
_SPEAKER_PREEMPHASIS = 0.97
_SPEAKER_POWER_FLOOR = torch.finfo(torch.float32).eps  # whatever the audio's dtype, as in Kaldi
_POVEY_EXPONENT = 0.85

PROMPT_MIN_SAMPLES = _PROMPT_PAD + 1  # a mirror needs one sample more than it shows
TOKENIZER_MIN_SAMPLES = _TOKENIZER_WINDOW // 2 + 1

_MAX_RESAMPLE_KERNEL = 2**25  # filter taps: 256 MB in float64
_MAX_KEPT_KERNEL = 2**20  # filter taps; every usual pair of rates has fewer
_KEPT_KERNELS = 16

# Mel frames, 100 per second. On a CPU: what saves the networks from fetching their weights more often than needed, but
# is not so much that what lies between two layers goes back to the system each time.
_CPU_BATCH_FRAMES = 6_000
_BATCH_FRAMES = 32_000


def batch_frames(device: torch.device) -> int:
    """Mel frames (100 per second) that the networks which hear take at once on a device."""
    return _CPU_BATCH_FRAMES if device.type == "cpu" else _BATCH_FRAMES


def check_wav(wav: Tensor, name: str, *, rate: int, minimum: int, dtype: torch.dtype) -> None:
    """Refuse audio that the maths cannot take.

    Args:
        wav: one clip of one channel.
        name: what the error calls it.
        rate: of the clip, Hz.
        minimum: the fewest samples that are enough.
        dtype: what the network computes in.

    Raises:
        ValueError: not a 1-D tensor of `dtype`, too short, too loud, or a value that is not finite.
    """
    if not isinstance(wav, Tensor):
        raise ValueError(f"{name} must be a 1-D tensor, not {type(wav).__name__}")
    if wav.dim() != 1:
        raise ValueError(f"{name} must be 1-D, one channel, not of shape {tuple(wav.shape)}")
    if wav.dtype != dtype:
        raise ValueError(f"{name} must be {dtype} with full scale at 1.0, not {wav.dtype}")
    if len(wav) < minimum:
        raise ValueError(
            f"{name} is too short: {len(wav)} samples ({1000 * len(wav) / rate:.1f} ms at {rate} Hz), "
            f"where at least {minimum} ({1000 * minimum / rate:.1f} ms) are needed"
        )
    finite = torch.isfinite(wav)
    if not bool(finite.all()):
        place = int((~finite).nonzero()[0])
        raise ValueError(
            f"{name} holds {int((~finite).sum())} value(s) that are not finite, "
            f"the first is {float(wav[place])} at sample {place}"
        )
    if (peak := float(wav.abs().max())) > LOUDEST:
        # What overflows in one clip of a batch would not be finite in the others.
        raise ValueError(f"{name} is too loud: its loudest sample is {peak:.2g}, where full scale is 1.0")


def resample(wav: Tensor, from_rate: int, to_rate: int) -> Tensor:
    """The same sound at another rate, as `torchaudio.transforms.Resample` makes it.

    The filter is computed in float64 whatever the audio is in, unlike that of `torchaudio.functional.resample`.

    Args:
        wav: (..., N) floating point.
        from_rate: Hz.
        to_rate: Hz.

    Returns:
        (..., ceil(N x to_rate / from_rate)), in the audio's dtype; the audio itself when the rates are equal.

    Raises:
        ValueError: as `resampled_length`.
    """
    taps = _kernel_taps(from_rate, to_rate)
    if from_rate == to_rate:
        return wav
    make = _resampler if taps <= _MAX_KEPT_KERNEL else _resampler.__wrapped__
    resampled: Tensor = make(from_rate, to_rate, wav.dtype, wav.device)(wav)
    return resampled


def resampled_length(samples: int, from_rate: int, to_rate: int) -> int:
    """Of what `resample` makes of so many samples.

    Raises:
        ValueError: a rate that is not a positive integer, or two rates with so little in common that the filter, one
            phase per output sample until they meet again, would fill the memory.
    """
    _kernel_taps(from_rate, to_rate)
    return -(-samples * to_rate // from_rate)


def _kernel_taps(from_rate: int, to_rate: int) -> int:
    for name, rate in (("from_rate", from_rate), ("to_rate", to_rate)):
        if isinstance(rate, bool) or not isinstance(rate, int) or rate < 1:
            raise ValueError(f"{name} is {rate!r}, but must be a positive whole number of Hz")
    common = math.gcd(from_rate, to_rate)
    taps = (from_rate // common) * (to_rate // common)
    if taps > _MAX_RESAMPLE_KERNEL:
        raise ValueError(
            f"cannot resample from {from_rate} to {to_rate} Hz: their greatest common divisor is only {common}; "
            f"bring the audio to a usual rate first (8000, 16000, 22050, 24000, 44100, 48000 ...)"
        )
    return taps


@functools.lru_cache(_KEPT_KERNELS)
def _resampler(from_rate: int, to_rate: int, dtype: torch.dtype, device: torch.device) -> nn.Module:
    filter_dtype = torch.float64 if dtype == torch.float64 else None
    return Resample(from_rate, to_rate, dtype=filter_dtype).to(device, dtype)


class PromptMel(nn.Module):
    """Log-mel of 24 kHz audio: magnitudes, natural logarithm, 50 frames per second."""

    window: Tensor
    filters: Tensor

    def __init__(self) -> None:
        super().__init__()
        filters = mel_filters(SAMPLE_RATE, _PROMPT_WINDOW, MEL_BINS, _PROMPT_FMAX)
        window = torch.hann_window(_PROMPT_WINDOW, dtype=torch.float32, device="cpu")
        self.register_buffer("window", window, persistent=False)
        self.register_buffer("filters", filters, persistent=False)

    @torch.no_grad()
    def forward(self, wav: Tensor) -> Tensor:
        """Features of one clip.

        Args:
            wav: (N,) at 24 kHz, in the module's dtype.

        Returns:
            (N // 480, 80) in that dtype, on the module's device.

        Raises:
            ValueError: as `check_wav`; at least 721 samples are needed.
        """
        check_wav(wav, "the reference audio", rate=SAMPLE_RATE, minimum=PROMPT_MIN_SAMPLES, dtype=self.window.dtype)
        with strict_float32(self.window.device):
            return self.batch([wav.to(self.window.device)])[0]

    def batch(self, wavs: Sequence[Tensor]) -> list[Tensor]:
        """`forward` of many clips that are known to be good and lie on the module's device."""
        frames, counts = _frames([_mirrored(wav, _PROMPT_PAD) for wav in wavs], _PROMPT_WINDOW, MEL_HOP)
        magnitudes = (_power(frames.mul_(self.window), _PROMPT_WINDOW) + _PROMPT_POWER_FLOOR).sqrt_()
        return list((magnitudes @ self.filters.T).clamp_(min=_PROMPT_MEL_FLOOR).log_().split(counts))


class TokenizerMel(nn.Module):
    """Log-mel of 16 kHz audio: power, base 10, 100 frames per second, at most 8 decades below the loudest bin."""

    window: Tensor
    filters: Tensor

    def __init__(self, mels: int) -> None:
        super().__init__()
        filters = mel_filters(TOKENIZER_RATE, _TOKENIZER_WINDOW, mels, TOKENIZER_RATE / 2)
        window = torch.hann_window(_TOKENIZER_WINDOW, dtype=torch.float32, device="cpu")
        self.register_buffer("window", window, persistent=False)
        self.register_buffer("filters", filters, persistent=False)

    def forward(self, wav: Tensor) -> Tensor:
        """Features of one clip. One, because the floor follows its loudest bin: a batch must not share it.

        Args:
            wav: (N,) at 16 kHz, checked by the caller; N at least 201.

        Returns:
            (N // 160, M).
        """
        return self.batch([wav])[0]

    def batch(self, wavs: Sequence[Tensor]) -> list[Tensor]:
        """`forward` of many clips."""
        # The last frame would be centred on the end: half of it is mirror.
        kept = [_mirrored(wav, _TOKENIZER_WINDOW // 2)[:-TOKENIZER_HOP] for wav in wavs]
        frames, counts = _frames(kept, _TOKENIZER_WINDOW, TOKENIZER_HOP)
        power = _power(frames.mul_(self.window), _TOKENIZER_WINDOW)
        decades = (power @ self.filters.T).clamp_(min=_TOKENIZER_POWER_FLOOR).log10_().split(counts)
        # Each clip's own floor: a batch must not share it.
        return [torch.maximum(clip, clip.max() - _TOKENIZER_RANGE).add_(4.0).div_(4.0) for clip in decades]


class SpeakerFeatures(nn.Module):
    """Kaldi's log-mel filter bank of 16 kHz audio, less each clip's mean over time, 100 frames per second.

    `speaker_features` computes the same with torchaudio, clip by clip.
    """

    window: Tensor
    filters: Tensor

    def __init__(self, mels: int) -> None:
        super().__init__()
        with torch.device("cpu"), float32_default():
            window = torch.hann_window(_SPEAKER_WINDOW, periodic=False).pow(_POVEY_EXPONENT)
            filters, _ = mel_banks(mels, _SPEAKER_FFT, float(TOKENIZER_RATE), 20.0, 0.0, 100.0, -500.0, 1.0)
        self.register_buffer("window", window, persistent=False)
        self.register_buffer("filters", F.pad(filters, (0, 1)), persistent=False)  # they leave the last bin out

    def forward(self, wavs: Sequence[Tensor]) -> list[Tensor]:
        """Features of clips.

        Args:
            wavs: (N,) each, at 16 kHz, in the module's dtype and on its device, checked by the caller; N at least 400.

        Returns:
            For each (1 + (N - 400) // 160, M).
        """
        frames, counts = _frames(wavs, _SPEAKER_WINDOW, _SPEAKER_HOP)
        frames -= frames.mean(dim=1, keepdim=True)
        emphasised = frames - _SPEAKER_PREEMPHASIS * torch.cat((frames[:, :1], frames[:, :-1]), dim=1)
        power = _power(emphasised.mul_(self.window), _SPEAKER_FFT)
        features = (power @ self.filters.T).clamp_(min=_SPEAKER_POWER_FLOOR).log_().split(counts)
        return [clip - clip.mean(dim=0, keepdim=True) for clip in features]


def _mirrored(wav: Tensor, samples: int) -> Tensor:
    """`wav` (N,) with so many samples mirrored at each end."""
    return F.pad(wav[None], (samples, samples), mode="reflect")[0]


def _frames(wavs: Sequence[Tensor], size: int, hop: int) -> tuple[Tensor, list[int]]:
    """Every whole frame of all clips (T, W), clip after clip, and how many each clip has."""
    frames = [wav.unfold(0, size, hop) for wav in wavs]
    return torch.cat(frames), [len(clip) for clip in frames]


def _power(frames: Tensor, n_fft: int) -> Tensor:
    """Power spectra (T, K) of windowed frames (T, W)."""
    spectrum = torch.fft.rfft(frames, n_fft)
    return spectrum.real.square().addcmul_(spectrum.imag, spectrum.imag)  # four times as fast as a sum over the two


def speaker_features(wav: Tensor, mels: int) -> Tensor:
    """What `SpeakerFeatures` makes of one clip, by torchaudio.

    Args:
        wav: (N,) at 16 kHz, checked by the caller; N at least 400.
        mels: M.

    Returns:
        (1 + (N - 400) // 160, M).
    """
    # Without dither, or a voice would have another vector each time.
    features = fbank(wav[None], num_mel_bins=mels, sample_frequency=TOKENIZER_RATE, dither=0.0)
    return features - features.mean(dim=0, keepdim=True)


def mel_filters(rate: int, n_fft: int, mels: int, fmax: float) -> Tensor:
    """Triangular filters of unit area on Slaney's mel scale, from 0 Hz on, those of `librosa.filters.mel`.

    Computed in float64: torchaudio's `melscale_fbanks` does it in float32 and is off by 5e-6 (relative L2).

    Args:
        rate: of the audio, Hz.
        n_fft: size of the FFT.
        mels: M.
        fmax: upper edge of the last filter, Hz.

    Returns:
        (M, n_fft // 2 + 1) float32, on the CPU.
    """
    bins = np.arange(n_fft // 2 + 1) * (rate / n_fft)
    edges = _mel_to_hz(np.linspace(0.0, _hz_to_mel(fmax), mels + 2))
    lower, centre, upper = edges[:-2, None], edges[1:-1, None], edges[2:, None]
    triangles = np.minimum((bins - lower) / (centre - lower), (upper - bins) / (upper - centre)).clip(min=0.0)
    # Rounded twice, as librosa does it: the features, and with them the tokens, then agree to the last bit.
    return torch.from_numpy((triangles.astype(np.float32) * (2.0 / (upper - lower))).astype(np.float32))


# Slaney's mel scale: linear up to 1 kHz, 27 steps per factor of 6.4 above.
_MEL_BREAK_HZ = 1_000.0
_HZ_PER_MEL = 200.0 / 3.0
_MEL_BREAK = _MEL_BREAK_HZ / _HZ_PER_MEL
_LOG_PER_MEL = math.log(6.4) / 27.0


def _hz_to_mel(hz: float) -> float:
    return hz / _HZ_PER_MEL if hz < _MEL_BREAK_HZ else _MEL_BREAK + math.log(hz / _MEL_BREAK_HZ) / _LOG_PER_MEL


def _mel_to_hz(mel: np.ndarray) -> np.ndarray:
    return np.where(mel < _MEL_BREAK, mel * _HZ_PER_MEL, _MEL_BREAK_HZ * np.exp((mel - _MEL_BREAK) * _LOG_PER_MEL))
