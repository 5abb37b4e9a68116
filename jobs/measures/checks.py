"""What is measured of every wave before it is stored, and what makes one suspect.

All of it is of the samples as they are stored: clipped to full scale, +-1, before 16-bit rounding. A second of audio
takes 0.2 ms of a CPU, half of what FLAC takes. What the numbers are not: a judgement of speech. A wave without problems
may be nonsense, and one with problems may be what its tokens say.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from jobs.config.config import ChecksConfig, JobConfig
from jobs.measures.loudness import SILENT, integrated_loudness
from jobs.measures.opinion import inconsistent_opinion
from jobs.measures.snr import HIGHEST, LOWEST, wada_snr
from s3gen.constants import SAMPLE_RATE, exact_div

FRAMES_PER_SECOND = 50  # of 20 ms: the unit of silence
EDGES_PER_SECOND = 200  # of 5 ms, or a sample less: where a click at either end is looked for
SILENT_RMS = 1e-3  # -60 dBFS
FLOOR_DB = -120.0  # dBFS, of digital silence; the rounding to 16 bits alone is at -101
CLIPPED_AT = np.float32(0.99)  # the vocoder holds its samples within this


@dataclass(frozen=True, slots=True)
class Measures:
    """Of one wave; each number is exact in float32, as the index stores it.

    Attributes:
        peak: the largest of the samples' absolute values, 0 to 1; of an empty wave 0.
        rms_db: root of the mean square in dB, -120 to 0; 0 is a constant at full scale, so that a sine at full scale
            has -3.01 (AES17 calls that 0). Of digital silence and of an empty wave -120.
        silence: share, 0 to 1, of the frames of 20 ms whose root mean square is below -60 dBFS. A last frame that is
            shorter counts as one. Of an empty wave 1. A wave of one token has two frames, and where it begins with the
            start fade the first of them is silent.
        clipped: share, 0 to 1, of the samples with an absolute value of 0.99 or more; of an empty wave 0.
        dc: mean of the samples, -1 to 1; of an empty wave 0.
        click_start, click_end: the largest step between neighbouring samples in the first and in the last 5 ms, the
            step between the silence outside and the wave included; 0 to 2. A wave shorter than that is looked at
            whole. Of an empty wave 0.
        loudness: in LUFS, -70 to 5, as `jobs.measures.loudness` defines it; of silence and of an empty wave -70.
        snr: estimate of how far speech is above noise, in dB, -20 to 100 (see `jobs.measures.snr`). Above 40 it says no
            more than that there is hardly any; of a second or less it is a guess. Of digital silence and of an empty
            wave -20.
    """

    peak: float
    rms_db: float
    silence: float
    clipped: float
    dc: float
    click_start: float
    click_end: float
    loudness: float
    snr: float


RANGES = {
    "peak": (0.0, 1.0),
    "rms_db": (FLOOR_DB, 0.0),
    "silence": (0.0, 1.0),
    "clipped": (0.0, 1.0),
    "dc": (-1.0, 1.0),
    "click_start": (0.0, 2.0),
    "click_end": (0.0, 2.0),
    "loudness": (SILENT, 5.0),
    "snr": (LOWEST, HIGHEST),
}
# Of an empty wave.
NOTHING = Measures(
    peak=0.0,
    rms_db=FLOOR_DB,
    silence=1.0,
    clipped=0.0,
    dc=0.0,
    click_start=0.0,
    click_end=0.0,
    loudness=SILENT,
    snr=LOWEST,
)
# Name of a problem: which measure, and which key of the configuration limits it.
CHECKS = {
    "silence": ("silence", "max_silence"),
    "clipping": ("clipped", "max_clipped"),
    "dc": ("dc", "max_dc"),
    "click_start": ("click_start", "max_click"),
    "click_end": ("click_end", "max_click"),
}


def measure(samples: npt.NDArray[np.float32], rate: int = SAMPLE_RATE) -> Measures:
    """Measures a wave.

    Args:
        samples: (L,) float32, finite, of any length.
        rate: Hz, a multiple of 50.
    """
    if not len(samples):
        return NOTHING
    wave = np.clip(samples, -1, 1)
    magnitude = np.abs(wave)
    starts = np.arange(0, len(wave), exact_div(rate, FRAMES_PER_SECOND))
    energy = np.add.reduceat(np.square(wave), starts)
    silent = energy < SILENT_RMS**2 * np.diff(starts, append=len(wave))
    power = energy.sum(dtype=np.float64) / len(wave)
    edge = rate // EDGES_PER_SECOND
    rounded = np.array(
        [
            magnitude.max(),
            min(10 * math.log10(max(power, 10 ** (FLOOR_DB / 10))), 0),
            np.count_nonzero(silent) / len(silent),
            np.count_nonzero(magnitude >= CLIPPED_AT) / len(wave),
            wave.mean(dtype=np.float64),
            _largest_step(np.concatenate(([0], wave[:edge]))),
            _largest_step(np.concatenate((wave[-edge:], [0]))),
            integrated_loudness(wave, rate),
            wada_snr(magnitude),
        ],
        np.float32,
    )
    return Measures(*rounded.tolist())


def _largest_step(wave: npt.NDArray[np.float64]) -> float:
    return float(np.abs(np.diff(wave)).max())


def problems(measures: Measures, limits: ChecksConfig) -> list[str]:
    """The names of the checks that a wave does not pass, of ``CHECKS`` and in its order.

    A value at its limit passes. The sign of ``dc`` does not matter.
    """
    return [
        name
        for name, (measured, key) in CHECKS.items()
        # In float32, as the measures are: as a double 0.001 is less than as that.
        if (limit := getattr(limits, key)) is not None and abs(getattr(measures, measured)) > float(np.float32(limit))
    ]


def explain(measures: Measures, limits: ChecksConfig) -> str:
    """The problems of a wave with their values and limits, for the failures table."""
    texts = []
    for name in problems(measures, limits):
        measured, key = CHECKS[name]
        texts.append(f"{name}: {getattr(measures, measured):.4g} is beyond checks.{key}, {getattr(limits, key):.4g}")
    return "; ".join(texts)


def inconsistency(entry: Mapping[str, Any], config: JobConfig) -> str | None:
    """What is wrong with the measures of a row of the index, or None.

    They cannot be taken again from the stored audio, which is rounded; but each has its range, and the problems follow
    from them and the job's limits.

    Args:
        entry: the row's columns.
        config: of the job.
    """
    for name, (low, high) in RANGES.items():
        value = entry[name]
        if value is None or not low <= value <= high:
            return f"{name} is {value}, not a number from {low:g} to {high:g}"
    wrong = inconsistent_opinion(entry, wanted=config.mos is not None)
    if wrong is not None:
        return wrong
    rate = entry["letters_per_second"]
    if rate is not None and not 0 <= rate < math.inf:
        return f"letters_per_second is {rate}, not a number from 0 on"
    expected = ",".join(problems(Measures(**{name: entry[name] for name in RANGES}), config.checks))
    if entry["problems"] != expected:
        return f"problems are {entry['problems']!r}, by its measures and the job's limits they are {expected!r}"
    if expected and config.on_bad_audio == "fail_row":
        return f"it has the problems {expected}, with which the job fails a row"
    return None
