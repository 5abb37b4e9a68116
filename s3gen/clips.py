"""Clips: audio as it is given, checked, and brought to the device and the rates at which the networks hear.

Shape letters: N samples.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from s3gen.audio import check_wav, resample, resampled_length
from s3gen.ragged import on_device, pad_rows

_MOST_CHANNELS = 8  # of a recording

Wav = Tensor | np.ndarray
Rate = int | np.integer[Any]


class Clips:
    """Clips of any lengths and rates, on the CPU: whether one is good must be known before a GPU has it.

    Args:
        wavs: (N,) float each, full scale at 1.0.
        rates: their rates in Hz.
        names: what errors call them.
        least: the fewest samples that are enough, by the rate at which they are heard.
        dtype: what the networks compute in.

    Raises:
        ValueError: a clip that is not 1-D, not floating point, not finite or too short, or a rate that is none.
    """

    def __init__(
        self,
        wavs: Sequence[Wav],
        rates: Sequence[Rate],
        *,
        names: Sequence[str],
        least: Mapping[int, int],
        dtype: torch.dtype,
    ) -> None:
        self._rates = [int(rate) if isinstance(rate, np.integer) else rate for rate in rates]
        self._wavs = [
            _checked(wav, rate, name, least, dtype) for wav, rate, name in zip(wavs, self._rates, names, strict=True)
        ]

    def __len__(self) -> int:
        return len(self._wavs)

    def lengths(self, rate: int) -> list[int]:
        """Samples of each clip when heard at `rate`."""
        return [resampled_length(len(wav), own, rate) for wav, own in zip(self._wavs, self._rates, strict=True)]

    def hear(self, rows: Sequence[int], rates: Sequence[int], device: torch.device) -> list[list[Tensor]]:
        """Some of the clips on a device.

        Args:
            rows: which; those of one rate go there together, so they had better be of similar length.
            rates: at which they are heard, Hz.
            device: where.

        Returns:
            For each of `rates`, the rows (N,) in the order asked for.
        """
        heard: list[dict[int, Tensor]] = [{} for _ in rates]
        for own in sorted({self._rates[row] for row in rows}):
            alike = [row for row in rows if self._rates[row] == own]
            # Zeros behind a clip are what the resampler itself takes for its surroundings.
            sounds = on_device(pad_rows([self._wavs[row] for row in alike]), device)
            for rate, found in zip(rates, heard, strict=True):
                for row, sound in zip(alike, resample(sounds, own, rate), strict=True):
                    found[row] = sound[: resampled_length(len(self._wavs[row]), own, rate)]
        return [[found[row] for row in rows] for found in heard]


def _checked(wav: Wav, rate: int, name: str, least: Mapping[int, int], dtype: torch.dtype) -> Tensor:
    tensor = torch.from_numpy(wav) if isinstance(wav, np.ndarray) else wav
    if isinstance(tensor, Tensor) and tensor.is_floating_point():
        tensor = tensor.detach().to("cpu", dtype)
    for heard_at in least:
        resampled_length(0, rate, heard_at)  # whether it can be
    enough = max((samples - 1) * rate // heard_at + 1 for heard_at, samples in least.items())
    check_wav(tensor, name, rate=rate, minimum=enough, dtype=dtype)
    return tensor


def stacked(wav: Wav, name: str) -> tuple[list[Wav], list[str]]:
    """Audio (N,) or (B, N) as clips (N,), and what errors call them.

    Raises:
        ValueError: another shape, or no audio at all.
    """
    if not isinstance(wav, Tensor | np.ndarray):
        raise ValueError(f"{name} must be a tensor or a numpy array, not {type(wav).__name__}")
    if wav.ndim not in (1, 2) or 0 in wav.shape:
        raise ValueError(f"{name} must have shape (samples,) or (clips, samples), not {tuple(wav.shape)}")
    if wav.ndim == 1:
        return [wav], [name]
    if len(wav) > wav.shape[1] <= _MOST_CHANNELS:  # as files are read; so short a clip would be none
        shape = tuple(wav.shape)
        raise ValueError(f"{name} of shape {shape} looks like (samples, channels): give one, such as {name}.mean(1)")
    return list(wav), [f"{name}[{row}]" for row in range(len(wav))]


def one_each(rates: Rate | Sequence[Rate], wavs: Sequence[Wav]) -> list[Rate]:
    """A rate for each clip, from one for all or one each.

    Raises:
        ValueError: another number of rates than clips.
    """
    each = list(rates) if isinstance(rates, Sequence | np.ndarray) else [rates] * len(wavs)
    if len(each) != len(wavs):
        raise ValueError(f"{len(wavs)} clips and {len(each)} rates do not match")
    return each


def places(wavs: Sequence[Wav]) -> list[str]:
    """What errors call the clips of a list."""
    return [f"wavs[{row}]" for row in range(len(wavs))]
