"""Waves on their way from the device."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from jobs.engine.transfer import Fetch


def _waves(device: str) -> list[torch.Tensor]:
    whole = torch.arange(1000, dtype=torch.float32, device=device)
    return [whole[:400], whole[400:401].clone(), whole[500:]]


def _check(fetch: Fetch) -> None:
    got = fetch.take()
    assert [wave.dtype for wave in got] == [np.float32] * 3
    np.testing.assert_array_equal(got[0], np.arange(400))
    np.testing.assert_array_equal(got[1], [400])
    np.testing.assert_array_equal(got[2], np.arange(500, 1000))


def test_waves_of_a_batch_come_back_whole_and_apart() -> None:
    fetch = Fetch(_waves("cpu"), None)
    assert fetch.ready
    _check(fetch)


def test_what_the_model_does_with_its_memory_later_does_not_reach_a_wave() -> None:
    waves = _waves("cpu")
    fetch = Fetch(waves, None)
    for wave in waves:
        wave.zero_()
    _check(fetch)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_copy_waits_for_its_batch_and_not_for_the_next() -> None:
    stream = torch.cuda.Stream()
    torch.cuda._sleep(10**8)
    fetch = Fetch(_waves("cuda"), stream)
    assert not fetch.ready
    torch.cuda._sleep(10**10)
    _check(fetch)
    assert not torch.cuda.current_stream().query()
    torch.cuda.synchronize()
