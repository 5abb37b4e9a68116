"""TF32 is off inside the model's calls on CUDA, and as it was outside; no GPU is needed to see the switches."""

from __future__ import annotations

import pytest
import torch

from s3gen.precision import strict_float32

SWITCHES = (torch.backends.cuda.matmul, torch.backends.cudnn.conv)


@pytest.fixture(autouse=True)
def _tf32():
    before = [switch.fp32_precision for switch in SWITCHES]
    for switch in SWITCHES:
        switch.fp32_precision = "tf32"
    yield
    for switch, precision in zip(SWITCHES, before, strict=True):
        switch.fp32_precision = precision


def now() -> list[str]:
    return [switch.fp32_precision for switch in SWITCHES]


def test_the_process_gets_its_switches_back():
    with strict_float32(torch.device("cuda")):
        assert now() == ["ieee", "ieee"]
    assert now() == ["tf32", "tf32"]


def test_they_come_back_after_an_error():
    with pytest.raises(RuntimeError), strict_float32(torch.device("cuda")):
        raise RuntimeError
    assert now() == ["tf32", "tf32"]


def test_calls_may_nest():
    with strict_float32(torch.device("cuda")):
        with strict_float32(torch.device("cuda")):
            pass
        assert now() == ["ieee", "ieee"]


def test_a_cpu_call_touches_no_switch_of_cuda():
    with strict_float32(torch.device("cpu")):
        assert now() == ["tf32", "tf32"]
