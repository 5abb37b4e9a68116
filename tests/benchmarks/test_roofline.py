"""Rates are of the work that was timed."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch

from benchmarks import roofline

CPU = torch.device("cpu")


def test_rate_is_of_another_size_than_was_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[tuple[torch.dtype, int]] = []

    def half_a_second(call: Callable[[], torch.Tensor], device: torch.device) -> float:
        result = call()
        made.append((result.dtype, result.numel()))
        return 0.5

    monkeypatch.setattr(roofline, "fastest", half_a_second)
    monkeypatch.setitem(roofline._SIZES, "cpu", (8, 16))
    monkeypatch.setitem(roofline._COPIED_BYTES, "cpu", 1000)
    assert roofline.matrix_rate(CPU, "float32") == 2 * 16**3 / 0.5
    assert roofline.matrix_rate(CPU, "bfloat16") == 2 * 16**3 / 0.5
    assert roofline.memory_rate(CPU) == 2 * 1000 / 0.5
    assert made == [
        (torch.float32, 64), (torch.float32, 256), (torch.bfloat16, 64), (torch.bfloat16, 256), (torch.uint8, 1000)
    ]  # fmt: skip


def test_unknown_type_is_timed_as_float32() -> None:
    with pytest.raises(ValueError, match="float8"):
        roofline.matrix_rate(CPU, "float8")


def test_first_call_is_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0, 3, 3, 5, 5, 6])  # of three timed calls: 3 s, 2 s, 1 s
    monkeypatch.setattr(roofline, "time", SimpleNamespace(perf_counter=lambda: next(clock)))
    calls: list[int] = []
    assert roofline.fastest(lambda: calls.append(1), CPU) == 1
    assert len(calls) == 4
