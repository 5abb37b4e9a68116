"""A model that hears a voice in what it makes: random weights put F0 anywhere, mostly where nothing is voiced."""

from __future__ import annotations

import copy

import torch

from s3gen import S3GenModel

PITCH = 150.0  # Hz, about


def voiced(model: S3GenModel, mel: torch.Tensor) -> S3GenModel:
    """A copy whose F0 head is scaled so that `mel` (1, 80, T) is voiced at about `PITCH`."""
    model = copy.deepcopy(model)
    with torch.no_grad():
        scale = PITCH / float(model.mel2wav.f0(mel.to(model.dtype)).mean())
        for weight in model.mel2wav.f0.classifier.parameters():
            weight.mul_(scale)
    return model


def slow_mel(frames: int, seed: int = 0) -> torch.Tensor:
    """A log-mel (1, 80, frames) that moves as speech does, not from frame to frame."""
    knots = torch.randn(1, 80, frames // 10 + 2, generator=torch.Generator().manual_seed(seed))
    return 2 * torch.nn.functional.interpolate(knots, size=frames, mode="linear") - 5
