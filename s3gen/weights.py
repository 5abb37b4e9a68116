"""Random weights by formula: each tensor follows from its published name alone.

They keep activations in a sane range and the voice voiced (F0 of about 60 to 240 Hz), so that every part of the
model is exercised by tests, demonstrations and benchmarks that have no trained weights.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping

import torch
from torch import Tensor

# (name's end, spread, centre): uniform in centre +- spread. The first row that fits counts.
_BY_NAME = (
    ("f0_predictor.classifier.bias", 0.0, 150.0),
    ("conv_post.bias", 0.3, -2.0),
    ("running_mean", 0.1, 0.0),
    ("running_var", 0.5, 1.0),
    ("alpha", 0.5, 1.0),
    ("pos_bias_u", 0.1, 0.0),
    ("pos_bias_v", 0.1, 0.0),
    ("bias", 0.1, 0.0),
)
# Gains over 1 / sqrt(fan in) of weights whose size decides whether the output means anything.
_GAINS = (
    ("f0_predictor.classifier.weight", 60.0),  # Hz per unit of a small activation
    ("conv_post.weight", 0.2),  # a logarithm of magnitudes: more would drive every sample into the limiter
    ("project_down.weight", 0.3),  # all three levels of every code occur
    ("input_embedding.weight", 20.0),  # one row is looked up, nothing is summed
)


def random_weights(shapes: Mapping[str, torch.Size]) -> dict[str, Tensor]:
    """Float32 weights for published names and shapes; the same on every machine."""
    return {name: _draw(name, shape) for name, shape in shapes.items()}


def _draw(name: str, shape: torch.Size) -> Tensor:
    generator = torch.Generator().manual_seed(int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") >> 1)
    spread, centre = _range(name, shape)
    drawn = torch.rand(shape, generator=generator, dtype=torch.float32)
    return drawn.mul_(2 * spread).add_(centre - spread)


def _range(name: str, shape: torch.Size) -> tuple[float, float]:
    for end, spread, centre in _BY_NAME:
        if name.endswith(end):
            return spread, centre
    if len(shape) == 1:  # the scale of a norm
        return 0.1, 1.0
    gain = next((gain for end, gain in _GAINS if name.endswith(end)), 1.0)
    # A uniform distribution of this spread has a standard deviation of gain / sqrt(fan in).
    return gain * math.sqrt(3.0 / math.prod(shape[1:])), 0.0
