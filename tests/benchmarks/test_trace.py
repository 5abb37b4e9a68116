"""A GPU's trace is read as PyTorch's profiler writes it. No GPU is needed: the events are given."""

from __future__ import annotations

import pytest

from benchmarks.trace import covered, summary


def event(category: str, name: str, begin: float, length: float) -> dict[str, object]:
    return {"ph": "X", "cat": category, "name": name, "ts": begin, "dur": length}


EVENTS = [
    {"ph": "M", "name": "process_name"},
    event("cuda_runtime", "cudaLaunchKernel", 0, 5),
    event("cuda_runtime", "cudaLaunchKernelExC", 5, 5),
    event("cuda_runtime", "cudaGraphLaunch", 10, 5),
    event("cuda_driver", "cuLaunchKernelEx", 15, 5),
    event("cuda_runtime", "cudaDeviceSynchronize", 20, 500),
    event("cpu_op", "aten::mm", 0, 500),
    event("kernel", "gemm", 100, 100),
    event("kernel", "norm", 150, 100),  # on another stream, half of it beside the first
    event("gpu_memcpy", "Memcpy DtoH", 300, 50),
    event("gpu_user_annotation", "batch", 0, 1000),
]


def test_busy_time_counts_twice_or_counts_the_host() -> None:
    found = summary(EVENTS, batches=2, wall=400e-6)
    assert found.busy_share == pytest.approx(200 / 400)


def test_launches_are_confused_with_kernels() -> None:
    found = summary(EVENTS, batches=2, wall=1.0)
    assert found.launches_per_batch == 2
    assert found.kernels_per_batch == 1


def test_trace_without_a_gpu_says_that_it_idles() -> None:
    with pytest.raises(ValueError, match="no work on a GPU"):
        summary(EVENTS[:7], batches=1, wall=1.0)


def test_spans_within_one_another_are_added() -> None:
    assert covered([(5, 6), (0, 10), (2, 3), (10, 12), (20, 21)]) == 13
    assert covered([]) == 0
