"""What the machine could do: the rate of large matrix products, and of copying memory."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from s3gen.precision import check_dtype, float32_products

_SIZES = {"cpu": (1024, 2048, 3072), "cuda": (4096, 8192, 16384)}  # of square matrices
_COPIED_BYTES = {"cpu": 2**28, "cuda": 2**32}
_REPEATS = {"cpu": 3, "cuda": 10}


def matrix_rate(device: torch.device, dtype: str) -> float:
    """The best rate of square matrix products, in FLOP/s.

    Args:
        device: ``cpu`` or ``cuda``.
        dtype: one of `s3gen.precision.DTYPES`. float32 is strict; tf32 is float32 on a CPU, which has no such unit.
    """
    kind = {"bfloat16": torch.bfloat16, "float16": torch.float16}.get(check_dtype(dtype), torch.float32)
    rates = []
    for size in _SIZES[device.type]:
        # Random numbers: products of zeros draw less power and run faster than any real ones.
        a, b = (torch.randn(size, size, device=device).to(kind) for _ in range(2))
        out = torch.empty_like(a)
        with float32_products(device, tf32=dtype == "tf32"):
            seconds = fastest(lambda a=a, b=b, out=out: torch.mm(a, b, out=out), device)
        rates.append(2 * size**3 / seconds)
    return max(rates)


def memory_rate(device: torch.device) -> float:
    """Bytes per second that a large copy reads and writes, both counted."""
    source = torch.ones(_COPIED_BYTES[device.type], dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * source.numel() / fastest(lambda: target.copy_(source), device)


def fastest(call: Callable[[], object], device: torch.device) -> float:
    """Seconds of the fastest of some calls, after one that warms up."""
    call()
    return min(_seconds(call, device) for _ in range(_REPEATS[device.type]))


def _seconds(call: Callable[[], object], device: torch.device) -> float:
    wait_for(device)
    begun = time.perf_counter()
    call()
    wait_for(device)
    return time.perf_counter() - begun


def wait_for(device: torch.device) -> None:
    """Return when the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
