"""What is done to a wave between the model and its file: silence trimmed, the rate changed, a watermark put in.

Each wave by itself, in this order, on the thread that encodes it. All of it keeps to frames of 20 ms, of which every
rate that can be stored has a whole number of samples: so lengths are exact, and nothing is rounded.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from jobs.audio.audiofile import Samples
from jobs.audio.watermark import Watermark
from jobs.config.config import WaveConfig
from s3gen.audio import resample
from s3gen.constants import MEL_HOP, MEL_RATE, SAMPLE_RATE


@dataclass(frozen=True, kw_only=True, slots=True)
class Mastered:
    """A wave as it is stored.

    Attributes:
        samples: (L,) at the job's rate.
        trimmed_start, trimmed_end: how many more there would be at either end.
    """

    samples: Samples
    trimmed_start: int
    trimmed_end: int


class Mastering:
    """What a job does to its waves; for any number of threads.

    Raises:
        InputError: a watermark is wanted and cannot be put in here.
    """

    def __init__(self, config: WaveConfig) -> None:
        self._config = config
        self._watermark = Watermark() if config.watermark else None

    def master(self, wave: Samples) -> Mastered:
        """Does it.

        Args:
            wave: (L,) float32 at 24 kHz, finite; whole tokens, one at least.
        """
        rate = self._config.sample_rate
        first, last = (0, len(wave)) if self._config.trim_db is None else self._heard(wave, self._config.trim_db)
        stored = _resampled(wave[first:last], rate)
        if self._watermark is not None:
            stored = self._watermark.put(stored, rate)
        return Mastered(
            samples=stored,
            trimmed_start=first * rate // SAMPLE_RATE,
            trimmed_end=(len(wave) - last) * rate // SAMPLE_RATE,
        )

    def _heard(self, wave: Samples, trim_db: float) -> tuple[int, int]:
        """From which to which sample a wave is kept: the frames that are loud enough, those between, and some around.

        Never nothing: the loudest frame is loud enough. Of digital silence all frames are.
        """
        energy = np.square(wave, dtype=np.float64).reshape(-1, MEL_HOP).sum(axis=1)
        loud = np.flatnonzero(energy >= energy.max() * 10 ** (-trim_db / 10))
        around = round(self._config.keep_silence * MEL_RATE)
        first, last = max(0, loud[0] - around), min(len(energy), loud[-1] + 1 + around)
        return int(first) * MEL_HOP, int(last) * MEL_HOP


def _resampled(wave: Samples, rate: int) -> Samples:
    if rate == SAMPLE_RATE:
        return wave
    with torch.inference_mode():
        resampled: Samples = resample(torch.from_numpy(np.ascontiguousarray(wave)), SAMPLE_RATE, rate).numpy()
    return resampled
