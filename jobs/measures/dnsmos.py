"""How good listeners would find an utterance, as a network foresees it: DNSMOS P.835.

Chandan K. A. Reddy, Vishak Gopal and Ross Cutler, "DNSMOS P.835: A Non-Intrusive Perceptual Objective Speech Quality
Metric to Evaluate Noise Suppressors", ICASSP 2022. The network comes in the package `speechmos` (MIT), of which
nothing else is used. It was trained on recordings of noisy rooms and what noise suppressors leave of them: it hears
noise and distortion, and knows nothing of what is said or of whose voice it is.

Shape letters: L samples.
"""

from __future__ import annotations

import hashlib
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from jobs.errors import InputError
from jobs.measures.opinion import BEST, LEAST, Opinion
from s3gen.audio import resample
from s3gen.constants import TOKENIZER_RATE

Samples = npt.NDArray[np.float32]

RATE = TOKENIZER_RATE  # Hz, of what the network hears
WINDOW = RATE * 901 // 100  # samples, its input
FILE = "dnsmos_models/sig_bak_ovr.onnx"
SHA256 = "269fbebdb513aa23cddfbb593542ecc540284a91849ac50516870e1ac78f6edd"

# From what the network says to opinions: the highest power first, of the speech, the background, the whole.
POLYNOMIALS = (
    (-0.08397278, 1.22083953, 0.0052439),
    (-0.13166888, 1.60915514, -0.39604546),
    (-0.06766283, 1.11546468, 0.04602535),
)
INSTALL = "pip install onnxruntime speechmos==0.0.1.1"


class Dnsmos:
    """The network, on one thread of the CPU; for any number of threads.

    Raises:
        InputError: a package that it needs is not installed, or has another network.
    """

    def __init__(self) -> None:
        try:
            import onnxruntime
        except ImportError as error:
            raise InputError(f"mos: dnsmos needs onnxruntime ({error}): {INSTALL}") from None
        network, options = _network(), onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(network, options, providers=["CPUExecutionProvider"])

    def opinion(self, samples: Samples, rate: int) -> Opinion:
        """What listeners would say.

        Args:
            samples: (L,) float32, finite, not empty.
            rate: Hz.
        """
        with torch.inference_mode():
            heard: Samples = resample(torch.from_numpy(np.ascontiguousarray(samples)), rate, RATE).numpy()
        windows = _windows(np.clip(heard, -1, 1))
        raw = np.stack([self._session.run(None, {"input_1": window[None]})[0][0] for window in windows])
        found = [np.polyval(powers, raw[:, at]).mean() for at, powers in enumerate(POLYNOMIALS)]
        return Opinion(*np.array(found, np.float32).clip(LEAST, BEST).tolist())


def _network() -> bytes:
    spec = find_spec("speechmos")
    if spec is None or spec.origin is None:
        raise InputError(f"mos: dnsmos needs the package speechmos, which has the network: {INSTALL}")
    file = Path(spec.origin).parent / FILE
    data = file.read_bytes() if file.is_file() else b""
    if hashlib.sha256(data).hexdigest() != SHA256:
        raise InputError(f"mos: {file} is not the network of speechmos 0.0.1.1, and would say otherwise: {INSTALL}")
    return data


def _windows(samples: Samples) -> list[Samples]:
    """Side by side, the last one up to the end; what is shorter than one is repeated until it fills it."""
    if len(samples) < WINDOW:
        return [np.resize(samples, WINDOW)]
    starts = [*range(0, len(samples) - WINDOW, WINDOW), len(samples) - WINDOW]
    return [samples[start : start + WINDOW] for start in starts]
