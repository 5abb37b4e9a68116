"""Loudness as ITU-R BS.1770-5 defines it: K-weighted, in gated blocks, of one channel.

The two filters are those of the recommendation's annex 1, which gives them as coefficients at 48 kHz; here they are
made again for any rate by the bilinear transform from the analogue sections that these coefficients stand for, as in
Brecht De Man, "Evaluation of Implementations of the EBU R128 Loudness Measurement", AES 2018.

Both are one recursion of four states. It runs on blocks of samples at a time: what a block's own samples give is a
product with a matrix, and so is what the states before it give.

Shape letters: L samples, N blocks of ``BLOCK`` samples, G gating blocks.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

SILENT = -70.0  # LUFS, the absolute gate; of what does not reach it anywhere
OFFSET = -0.691  # dB; a sine of 997 Hz at full scale has -3.01 LUFS with it
RELATIVE_GATE = 0.1  # of the mean power of the blocks that pass the absolute one
OVERLAPS = 4  # a gating block of 400 ms begins every 100 ms
STEPS_PER_SECOND = 10
BLOCK = 64

# Analogue sections: Hz, and how sharp. A shelf for what the head adds, then a high pass.
SHELF_HZ, SHELF_Q, SHELF_DB = 1681.974450955533, 0.7071752369554196, 3.999843853973347
SHELF_MIDDLE = 0.4996667741545416  # exponent of the shelf's gain in the middle of its slope
HIGH_PASS_HZ, HIGH_PASS_Q = 38.13547087602444, 0.5003270373238773

Samples = npt.NDArray[np.float32]
Matrix = npt.NDArray[np.float64]


class Section(NamedTuple):
    """A filter of second order: y = (b0 + b1 / z + b2 / z^2) / (1 + a1 / z + a2 / z^2) x."""

    b: tuple[float, float, float]
    a: tuple[float, float]


class Blocks(NamedTuple):
    """The recursion, ``BLOCK`` samples at a time; matrices are applied from the right."""

    gathered: Samples  # (BLOCK, 4) samples in to the states behind them
    heard: Samples  # (4 + BLOCK, BLOCK) states before and samples in to samples out
    forward: tuple[Matrix, ...]  # (4, 4) states over 1, 2, 4 ... blocks, until nothing is left of them


def integrated_loudness(samples: Samples, rate: int) -> float:
    """Loudness in LUFS, -70 and up; exactly -70 where no block is louder, and of an empty wave.

    A wave that is shorter than a gating block, 400 ms, is one block of its own length, which the recommendation leaves
    open. Of others the last samples count up to a whole tenth of a second, as in the recommendation.

    Args:
        samples: (L,) float32, finite, full scale +-1.
        rate: Hz, 8000 or more.
    """
    powers = _powers(_weighted(samples, rate), rate // STEPS_PER_SECOND)
    loud = powers[powers > _power(SILENT)]
    if not len(loud):
        return SILENT
    return max(SILENT, OFFSET + 10 * math.log10(loud[loud > RELATIVE_GATE * loud.mean()].mean()))


def _power(loudness: float) -> float:
    return 10.0 ** ((loudness - OFFSET) / 10)


def _powers(weighted: Samples, step: int) -> npt.NDArray[np.float64]:
    """(G,) mean squares of the gating blocks."""
    if len(weighted) < OVERLAPS * step:
        return np.array([np.square(weighted).mean(dtype=np.float64)] if len(weighted) else [], np.float64)
    whole = len(weighted) // step * step
    steps = weighted[:whole].reshape(-1, step)
    energies = np.einsum("ij,ij->i", steps, steps).astype(np.float64)
    return np.convolve(energies, np.ones(OVERLAPS), "valid") / (OVERLAPS * step)


def _weighted(samples: Samples, rate: int) -> Samples:
    """(L,) behind both filters, which were at rest before."""
    blocks = _blocks(rate)
    filled = np.zeros(-(-len(samples) // BLOCK) * BLOCK, np.float32)
    filled[: len(samples)] = samples
    given = filled.reshape(-1, BLOCK)  # (N, BLOCK)
    states = (given @ blocks.gathered).astype(np.float64)  # (N, 4), of what is in each block alone
    reach = 1
    for forward in blocks.forward:
        # Those of twice as many blocks each time; the right side is read whole before it is added.
        states[reach:] = states[reach:] + states[:-reach] @ forward
        reach *= 2
    entered = np.zeros((len(given), 4 + BLOCK), np.float32)
    entered[1:, :4] = states[:-1]
    entered[:, 4:] = given
    return (entered @ blocks.heard).reshape(-1)[: len(samples)]


@lru_cache(maxsize=8)
def _blocks(rate: int) -> Blocks:
    step, enter, leave, through = _recursion(_shelf(rate), _high_pass(rate))
    powers = [np.eye(4)]
    for _ in range(BLOCK):
        powers.append(powers[-1] @ step)
    rung = np.stack([leave @ power for power in powers[:BLOCK]], axis=1)  # (4, BLOCK) of states before
    gathered = np.stack([power @ enter for power in powers[BLOCK - 1 :: -1]])  # (BLOCK, 4)
    response = np.concatenate(([through], [leave @ power @ enter for power in powers[: BLOCK - 1]]))
    lags = np.arange(BLOCK)[None] - np.arange(BLOCK)[:, None]  # from a sample in, to one out
    direct = np.where(lags >= 0, response[lags], 0.0)
    forward = [powers[BLOCK].T]
    while np.abs(forward[-1]).max() > 1e-12:
        forward.append(forward[-1] @ forward[-1])
    heard = np.concatenate((rung, direct))
    return Blocks(gathered.astype(np.float32), heard.astype(np.float32), tuple(forward))


def _recursion(first: Section, second: Section) -> tuple[Matrix, Matrix, Matrix, float]:
    """Two sections in a row as states s' = step s + enter x, y = leave s + through x (transposed direct form II)."""
    step, enter, leave = np.zeros((4, 4)), np.zeros(4), np.zeros(4)
    for at, (b, a) in ((0, first), (2, second)):
        step[at : at + 2, at : at + 2] = [[-a[0], 1], [-a[1], 0]]
        enter[at : at + 2] = [b[1] - a[0] * b[0], b[2] - a[1] * b[0]]
    # The second one's input is what the first one puts out.
    step[2:, 0] = enter[2:]
    leave[[0, 2]] = second.b[0], 1
    enter[2:] *= first.b[0]
    return step, enter, leave, first.b[0] * second.b[0]


def _shelf(rate: int) -> Section:
    warped = math.tan(math.pi * SHELF_HZ / rate)
    high = 10 ** (SHELF_DB / 20)
    slope, middle = warped / SHELF_Q, high**SHELF_MIDDLE * warped / SHELF_Q
    scale = 1 + slope + warped**2
    b = (high + middle + warped**2, 2 * (warped**2 - high), high - middle + warped**2)
    return Section((b[0] / scale, b[1] / scale, b[2] / scale), _poles(warped, SHELF_Q))


def _high_pass(rate: int) -> Section:
    # Its gain above is 1.005 at 48 kHz in the recommendation, which has these numbers whatever the poles are.
    return Section((1.0, -2.0, 1.0), _poles(math.tan(math.pi * HIGH_PASS_HZ / rate), HIGH_PASS_Q))


def _poles(warped: float, q: float) -> tuple[float, float]:
    scale = 1 + warped / q + warped**2
    return 2 * (warped**2 - 1) / scale, (1 - warped / q + warped**2) / scale
