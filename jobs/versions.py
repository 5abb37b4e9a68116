"""The versions of this program and of what it runs on, as a user reports them."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version


def version_lines() -> list[str]:
    """A line each for s3gen, Python, torch, CUDA, every GPU, and Ray. What cannot be imported says so in its line."""
    python = f"python {platform.python_version()} on {platform.system()} {platform.machine()}"
    return [f"s3gen {_installed('s3gen')}", python, *_torch(), f"ray {_installed('ray')}"]


def _installed(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "is not installed"


def _torch() -> Iterator[str]:
    try:
        import torch
    except Exception as error:  # a build that does not fit the machine can raise anything
        yield f"torch {_installed('torch')} cannot be imported: {type(error).__name__}: {error}"
        return
    yield f"torch {torch.__version__}"
    built_for = torch.version.cuda or torch.version.hip
    if built_for is None:
        yield "CUDA none: this torch is built for CPUs"
        return
    found = torch.cuda.device_count() if torch.cuda.is_available() else 0
    yield f"CUDA {built_for}{'' if found else ': torch finds no GPU'}"
    for number in range(found):
        gpu = torch.cuda.get_device_properties(number)
        size = gpu.total_memory / 2**30
        yield f"GPU {number}: {gpu.name}, {size:.0f} GiB, compute capability {gpu.major}.{gpu.minor}"
