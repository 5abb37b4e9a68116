"""What a CUDA GPU did while some batches were made: launches, kernels, and how much of the time it was busy."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.roofline import wait_for

# Categories of the events in a trace of PyTorch's profiler.
_ON_DEVICE = ("kernel", "gpu_memcpy", "gpu_memset")
_ON_HOST = ("cuda_runtime", "cuda_driver")
_LAUNCHES = ("cudaLaunch", "cuLaunch", "cudaGraphLaunch", "cuGraphLaunch")


@dataclass(frozen=True, kw_only=True, slots=True)
class Trace:
    """Of some batches made one after another.

    Attributes:
        launches_per_batch: calls by which the host starts work: kernels, or graphs of many.
        kernels_per_batch: kernels that ran.
        busy_share: the share of the time in which at least one kernel or copy ran.
    """

    launches_per_batch: float
    kernels_per_batch: float
    busy_share: float


def record(make: Sequence[Callable[[], object]], device: torch.device) -> Trace:
    """Make batches under the profiler, each queued without waiting for the one before.

    The host is slowed by the recording, so that the busy share is rather too small than too large.
    """
    wait_for(device)
    with profile(activities=[ProfilerActivity.CUDA]) as recorded:
        begun = time.perf_counter()
        for batch in make:
            batch()
        wait_for(device)
        wall = time.perf_counter() - begun
    with tempfile.TemporaryDirectory(prefix="trace-") as folder:
        path = Path(folder) / "trace.json"
        recorded.export_chrome_trace(str(path))
        events = json.loads(path.read_text())["traceEvents"]
    return summary(events, batches=len(make), wall=wall)


def summary(events: Iterable[Mapping[str, Any]], *, batches: int, wall: float) -> Trace:
    """From the events of a Chrome trace (times in microseconds) of batches that took `wall` seconds.

    Raises:
        ValueError: no event of a GPU is among them.
    """
    launches, kernels, spans = 0, 0, []
    for event in events:
        category = event.get("cat")
        if category in _ON_HOST:
            launches += event["name"].startswith(_LAUNCHES)
        elif category in _ON_DEVICE:
            kernels += category == "kernel"
            spans.append((event["ts"], event["ts"] + event["dur"]))
    if not spans:
        raise ValueError("the profiler saw no work on a GPU")
    return Trace(
        launches_per_batch=launches / batches,
        kernels_per_batch=kernels / batches,
        busy_share=covered(spans) / 1e6 / wall,
    )


def covered(spans: Iterable[tuple[float, float]]) -> float:
    """The length of the union of (begin, end): streams may work at the same time."""
    total, until = 0.0, float("-inf")
    for begin, end in sorted(spans):
        total += max(0.0, end - max(begin, until))
        until = max(until, end)
    return total
