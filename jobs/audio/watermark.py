"""Resemble AI's watermark, which its own software finds again: the PyPI package resemble-perth, the extra `watermark`.

It is inaudible to most, and says that a machine made the audio; it carries no message. A small network, with its
weights in the package, changes magnitudes below 2 kHz. The same wave gets the same watermark.
"""

from __future__ import annotations

import contextlib
import importlib
import sys
from types import ModuleType

import numpy as np
import torch

from jobs.audio.audiofile import Samples
from jobs.errors import InputError
from s3gen import _torchaudio as _torchaudio  # before perth, which imports torchaudio as if it always could be

LEAST_SECONDS = 0.1  # that the network is given; its windows need 32 ms


class Watermark:
    """The network; for any number of threads.

    Raises:
        InputError: the package is not installed, or does not load.
    """

    def __init__(self) -> None:
        perth = _package()
        # It prints that it is loaded, where a command's own output goes.
        with contextlib.redirect_stdout(sys.stderr):
            self._perth = perth.PerthImplicitWatermarker(device="cpu")

    def put(self, wave: Samples, rate: int) -> Samples:
        """A wave with the watermark.

        Args:
            wave: (L,) float32.
            rate: Hz; a wave of whole frames of 20 ms keeps its length.

        Raises:
            RuntimeError: it does not keep its length.
        """
        least = round(LEAST_SECONDS * rate)
        padded = np.pad(wave, (0, max(0, least - len(wave))))
        with torch.inference_mode():
            marked: Samples = self._perth.apply_watermark(padded, sample_rate=rate)
        if len(marked) != len(padded):
            raise RuntimeError(f"the watermark made {len(marked)} samples of {len(padded)} at {rate} Hz")
        return np.asarray(marked[: len(wave)], np.float32)


def _package() -> ModuleType:
    try:
        perth = importlib.import_module("perth")
        # Where something that it needs is missing, it has None here and says nothing.
        importlib.import_module("perth.perth_net.perth_net_implicit.perth_watermarker")
    except Exception as error:  # of what a package may raise while it is imported
        raise InputError(
            f"wave.watermark: resemble-perth does not load ({type(error).__name__}: {error}); "
            "pip install resemble-perth librosa 'setuptools<82', or leave wave.watermark false"
        ) from None
    return perth
