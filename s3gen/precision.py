"""What the flow computes in, and what float32 means, on CUDA and within a caller's autocast.

TF32 keeps 10 bits of mantissa. cuDNN uses it for float32 convolutions by default, which alone would move the mel by
more than the whole tolerance. Autocast keeps 7 or 10, and recasts one operand of a product where the other, or the
memory for its result, is float32 all the same.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch

# float32: strict, as the reference. tf32: float32 tensors, matrix products and convolutions in TF32 on CUDA.
# bfloat16, float16: the flow's estimator in that type, everything else as with tf32.
DTYPES = ("float32", "tf32", "bfloat16", "float16")

HALF_TYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}


def check_dtype(dtype: str) -> str:
    """The name itself.

    Raises:
        ValueError: not one of `DTYPES`.
    """
    if dtype not in DTYPES:
        raise ValueError(f"dtype is {dtype!r}, but must be one of {', '.join(DTYPES)}")
    return dtype


def strict_float32(device: torch.device) -> contextlib.AbstractContextManager[None]:
    """Within it, float32 matrix products and convolutions on `device` are float32 (CUDA's switches are per process)."""
    return float32_products(device, tf32=False)


@contextlib.contextmanager
def float32_products(device: torch.device, *, tf32: bool) -> Iterator[None]:
    """Within it, float32 products on `device` are float32, on CUDA in TF32 or strictly not, whatever the caller set."""
    switches: list[Any] = []
    if device.type == "cuda":
        switches = [torch.backends.cuda.matmul, torch.backends.cudnn.conv]  # type: ignore[attr-defined]
    before = [switch.fp32_precision for switch in switches]
    try:
        for switch in switches:
            switch.fp32_precision = "tf32" if tf32 else "ieee"
        with _without_autocast(device):
            yield
    finally:
        for switch, precision in zip(switches, before, strict=True):
            switch.fp32_precision = precision


def _without_autocast(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    # Not every device has it; and of those that plug into torch, some cannot even be told to leave it.
    if torch.amp.is_autocast_available(device.type) and torch.is_autocast_enabled(device.type):
        return torch.autocast(device.type, enabled=False)
    return contextlib.nullcontext()


@contextlib.contextmanager
def float32_default() -> Iterator[None]:
    """Within it, tensors without a stated type are float32: for makers of tables that take no type (per process)."""
    before = torch.get_default_dtype()
    try:
        torch.set_default_dtype(torch.float32)
        yield
    finally:
        torch.set_default_dtype(before)
