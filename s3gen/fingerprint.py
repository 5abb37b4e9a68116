"""Fingerprints: whether two models are the same, to the bit, or hear voices in the same way."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

_VOICE_PARTS = ("tokenizer.", "speaker_encoder.")
_VOICE_FIELDS = ("sampling_rate", "mel_bins", "n_fft", "hop_length", "win_size", "fmin", "fmax")


def fingerprint(weights: Mapping[str, Tensor], config: Mapping[str, Any]) -> str:
    """Hex sha256 over a configuration and every weight's name, dtype, shape and bytes."""
    digest = hashlib.sha256(json.dumps(config, sort_keys=True).encode())
    for name in sorted(weights):
        weight = weights[name].detach().cpu().contiguous()
        digest.update(f"{name} {weight.dtype} {tuple(weight.shape)}\n".encode())
        digest.update(weight.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def voice_fingerprint(weights: Mapping[str, Tensor], config: Mapping[str, Any]) -> str:
    """The same over the parts and fields that a voice is made with; weights under their published names."""
    heard = {name: weight for name, weight in weights.items() if name.startswith(_VOICE_PARTS)}
    return fingerprint(heard, {name: value for name, value in config.items() if _describes_voices(name)})


def _describes_voices(name: str) -> bool:
    return name.startswith(("tokenizer_", "speaker_")) or name in _VOICE_FIELDS
