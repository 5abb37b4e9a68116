"""How far a voice stands above its noise, estimated from the samples alone.

Chanwoo Kim and Richard M. Stern, "Robust Signal-to-Noise Ratio Estimation Based on Waveform Amplitude Distribution
Analysis" (WADA-SNR), Interspeech 2008. The amplitudes of clean speech follow a gamma distribution of shape 0.4, those
of noise a normal one; the logarithm of their mean less the mean of their logarithms tells how much there is of each.
It needs no pauses, and knows none: a wave need not begin or end in silence.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

LOWEST, HIGHEST = -20.0, 100.0  # dB
STEP = 5  # dB

# The statistic at -20, -15 ... 100 dB, by integration over both distributions. At -inf it is that of noise alone,
# (ln(4 / pi) + gamma) / 2 = 0.4094; at +inf ln 0.4 - psi(0.4) = 1.6451.
STATISTICS = (
    *(0.40943, 0.40978, 0.41215, 0.42384, 0.46184, 0.54356, 0.66737, 0.81230, 0.95586, 1.08469, 1.19409, 1.28423),
    *(1.35728, 1.41596, 1.46286, 1.50023, 1.52998, 1.55364, 1.57244, 1.58738, 1.59925, 1.60867, 1.61617, 1.62211),
    1.62684,
)


def wada_snr(magnitude: npt.NDArray[np.float32]) -> float:
    """The estimate in dB, -20 to 100; of nothing but zeros -20.

    Samples of exactly 0 are left out: they are fades and digital silence, not noise.

    Args:
        magnitude: (L,) absolute values of samples, finite.
    """
    heard = magnitude[magnitude > 0]
    if not len(heard):
        return LOWEST
    statistic = math.log(heard.mean(dtype=np.float64)) - float(np.log(heard).mean(dtype=np.float64))
    levels = np.arange(LOWEST, HIGHEST + STEP, STEP)
    return float(np.interp(statistic, STATISTICS, levels))
