"""Strict float32 on CUDA, whatever the process's global switches say.

TF32 keeps 10 bits of mantissa. cuDNN uses it for float32 convolutions by default, which alone would move the mel by
more than the whole tolerance.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch


@contextlib.contextmanager
def strict_float32(device: torch.device) -> Iterator[None]:
    """Within it, float32 matrix products and convolutions on `device` are float32 (the switches are per process)."""
    if device.type != "cuda":
        yield
        return
    switches: list[Any] = [torch.backends.cuda.matmul, torch.backends.cudnn.conv]  # type: ignore[attr-defined]
    before = [switch.fp32_precision for switch in switches]
    try:
        for switch in switches:
            switch.fp32_precision = "ieee"
        yield
    finally:
        for switch, precision in zip(switches, before, strict=True):
            switch.fp32_precision = precision
