"""The counts are what the model does, by PyTorch's own counter."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import flops
from s3gen import S3GenModel

TOLERANCE = 0.01


def counted(call: Callable[[], object]) -> int:
    # The fused attention of a CPU is no operation that the counter knows.
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()


@pytest.mark.parametrize("frames", [12, 150])
def test_estimator_does_other_work_than_is_counted(tiny_model: S3GenModel, frames: int) -> None:
    plain, bins = tiny_model.flow.estimator, tiny_model.config.mel_bins
    time = plain.embed_time(torch.tensor(0.0), torch.tensor(0.1))
    done = counted(lambda: plain(torch.zeros(1, frames, bins), torch.zeros(1, frames, 3 * bins), time, None))
    assert flops.estimator(tiny_model.config.flow.estimator, frames) == pytest.approx(done, rel=TOLERANCE)


@pytest.mark.parametrize("tokens", [6, 75])
def test_encoder_does_other_work_than_is_counted(tiny_model: S3GenModel, tokens: int) -> None:
    done = counted(lambda: tiny_model.flow.encode(torch.zeros(1, tokens, dtype=torch.long), [tokens]))
    assert flops.encoder(tiny_model.config, 2 * tokens) == pytest.approx(done, rel=TOLERANCE)


@pytest.mark.parametrize("frames", [12, 150])
def test_vocoder_does_other_work_than_is_counted(tiny_model: S3GenModel, frames: int) -> None:
    mel = torch.zeros(1, tiny_model.config.mel_bins, frames)
    done = counted(lambda: tiny_model.mel2wav.inference(mel))
    assert flops.vocoder(tiny_model.config, frames) == pytest.approx(done, rel=TOLERANCE)


def test_guidance_or_steps_are_not_counted(tiny_model: S3GenModel) -> None:
    config = tiny_model.config
    rows = [flops.Row(prompt=20, made=30), flops.Row(prompt=10, made=8)]
    ten, one = flops.of_rows(config, rows, 10), flops.of_rows(config, rows, 1)
    evaluations = sum(flops.estimator(config.flow.estimator, row.prompt + row.made) for row in rows)
    assert ten - one == pytest.approx(9 * 2 * evaluations)
