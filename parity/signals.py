"""Clips to hold the model against the reference on: recorded voices from a folder, or a synthetic stand-in."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from s3gen.audio import resample

_SUFFIXES = (".wav", ".flac", ".ogg")
_SYNTHETIC_RATE = 48_000
_SYLLABLES_PER_SECOND = 4
_FORMANTS = ((730, 1090, 2440), (270, 2290, 3010), (300, 870, 2240), (530, 1840, 2480), (570, 840, 2410))  # Hz


@dataclass(frozen=True, kw_only=True, slots=True)
class Clip:
    """A name, samples (N,) float32 and their rate in Hz."""

    name: str
    wav: Tensor
    rate: int

    def at(self, rate: int, seconds: float) -> Tensor:
        """The first `seconds` at another rate."""
        return resample(self.wav[: int(seconds * self.rate)], self.rate, rate)


def read_clips(folder: Path) -> list[Clip]:
    """Every audio file of a folder, mixed to one channel.

    Raises:
        FileNotFoundError: there is none.
    """
    import soundfile

    paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in _SUFFIXES)
    if not paths:
        raise FileNotFoundError(f"no audio ({', '.join(_SUFFIXES)}) in {folder}")
    clips = []
    for path in paths:
        wav, rate = soundfile.read(path, dtype="float32", always_2d=True)
        clips.append(Clip(name=path.stem, wav=torch.from_numpy(wav.mean(axis=1)), rate=rate))
    return clips


def synthetic_clips() -> list[Clip]:
    """Three made-up voices."""
    return [
        Clip(name=f"synthetic-{pitch}", wav=babble(8.0, _SYNTHETIC_RATE, pitch=pitch, seed=pitch), rate=_SYNTHETIC_RATE)
        for pitch in (95, 140, 210)
    ]


def babble(seconds: float, rate: int, *, pitch: float, seed: int) -> Tensor:
    """Vowels of a moving pitch between bursts of noise: (seconds x rate,) float32, peak 0.5."""
    generator = torch.Generator().manual_seed(seed)
    count = math.ceil(seconds * _SYLLABLES_PER_SECOND)
    vowels = torch.randint(len(_FORMANTS), (count,), generator=generator).tolist()
    glides = (torch.rand(count, 2, generator=generator) * 0.6 + 0.7).tolist()
    samples = rate // _SYLLABLES_PER_SECOND
    syllables = [
        _syllable(_FORMANTS[vowel], pitch * glide[0], pitch * glide[1], samples, rate, generator)
        for vowel, glide in zip(vowels, glides, strict=True)
    ]
    wave = torch.cat(syllables)[: int(seconds * rate)]
    return (0.5 * wave / wave.abs().max()).float()


def _syllable(
    formants: tuple[int, ...], start: float, end: float, samples: int, rate: int, generator: torch.Generator
) -> Tensor:
    """A burst of noise, then harmonics whose loudness follows the formants."""
    place = torch.linspace(0, 1, samples, dtype=torch.float64)
    f0 = start + (end - start) * place
    phase = 2 * math.pi * torch.cumsum(f0, 0) / rate
    voice = torch.zeros_like(place)
    for harmonic in range(1, int(min(4_000, 0.45 * rate) / max(start, end)) + 1):
        frequency = harmonic * f0
        gain = sum(1 / (1 + ((frequency - formant) / 80) ** 2) for formant in formants) + 0.02
        voice += gain * torch.sin(harmonic * phase)
    noise = torch.randn(samples, generator=generator, dtype=torch.float64)
    burst = torch.exp(-(((place - 0.08) / 0.05) ** 2))
    return voice * torch.sin(math.pi * place).clamp(min=0) ** 0.7 + 0.5 * burst * noise + 0.002 * noise
