"""Models and voices that the tests share. Small ones: a test that needs the real size asks for `full_model`."""

from __future__ import annotations

import math

import pytest
import torch

from s3gen import S3GenModel, Voice
from tests import surroundings
from tests.jobs.ray_head import ray_head  # noqa: F401 - a fixture of several modules

surroundings.shut_out()
surroundings.choose_examples()
# The tiny model's tensors are so small that a second thread costs more than it brings.
torch.set_num_threads(1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks the tests that ask for a real Ray; those that start one by themselves say so."""
    for item in items:
        if {"local_ray", "ray_head"} & set(getattr(item, "fixturenames", ())):
            item.add_marker("cluster")


@pytest.fixture(scope="session")
def tiny_model() -> S3GenModel:
    return S3GenModel.from_pretrained("random:tiny")


@pytest.fixture(scope="session")
def exact_model() -> S3GenModel:
    """In float64, where a leak of padding cannot hide behind rounding."""
    return S3GenModel.from_pretrained("random:tiny").double()


@pytest.fixture(scope="session")
def full_model() -> S3GenModel:
    return S3GenModel.from_pretrained("random:full")


def speech_like(seconds: float, rate: int, *, seed: int = 0, pitch: float = 120.0) -> torch.Tensor:
    """A buzz with moving formant-like amplitude and some noise: (seconds x rate,) float32."""
    time = torch.arange(int(seconds * rate), dtype=torch.float64) / rate
    wobble = 1 + 0.1 * torch.sin(2 * math.pi * 3 * time + seed)
    phase = 2 * math.pi * torch.cumsum(pitch * wobble, 0) / rate
    buzz = sum(torch.sin(k * phase) / k for k in range(1, 20) if k * pitch * 1.1 < rate / 2)
    envelope = 0.5 + 0.5 * torch.sin(2 * math.pi * (2 + seed % 3) * time)
    noise = torch.randn(len(time), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (0.2 * envelope * buzz + 0.01 * noise).float()


def random_tokens(count: int, seed: int) -> torch.Tensor:
    return torch.randint(0, 6561, (count,), generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="session")
def voices(tiny_model: S3GenModel) -> list[Voice]:
    """Three voices of different prompt lengths."""
    clips = [speech_like(seconds, 24_000, seed=i, pitch=90.0 + 60 * i) for i, seconds in enumerate((0.9, 1.5, 0.6))]
    return [Voice.from_ref(tiny_model.embed_ref(clip, 24_000)) for clip in clips]


def relative_error(got: torch.Tensor, want: torch.Tensor) -> float:
    """Relative L2."""
    assert got.shape == want.shape, f"{tuple(got.shape)} against {tuple(want.shape)}"
    return float((got.double() - want.double()).norm() / want.double().norm())
