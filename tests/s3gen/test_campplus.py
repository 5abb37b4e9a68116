"""The speaker encoder's layers as they were trained."""

import math

import pytest
import torch
from torch import nn

from s3gen.campplus import BatchNorm, StatsPool, segment_means


@pytest.mark.parametrize("frames", [1, 99, 100, 101, 250])
def test_segments_of_100_frames_and_the_rest_by_itself(frames):
    x = torch.randn(2, 3, frames, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    expected = torch.cat([part.mean(-1, keepdim=True).expand_as(part) for part in x.split(100, dim=-1)], dim=-1)
    torch.testing.assert_close(segment_means(x), expected)


def test_pooling_is_mean_and_sample_deviation():
    x = torch.tensor([[[1.0, 2.0, 6.0], [0.0, 0.0, 0.0]]])
    assert torch.allclose(StatsPool()(x), torch.tensor([[3.0, 0.0, math.sqrt(7.0), 0.0]]))


@pytest.mark.parametrize("affine", [True, False])
def test_batch_norm_is_torchs_in_evaluation(affine):
    theirs = nn.BatchNorm1d(5, affine=affine).eval()
    generator = torch.Generator().manual_seed(0)
    for tensor in theirs.state_dict().values():
        if tensor.is_floating_point():
            tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.1)
    ours = BatchNorm(5, affine=affine)
    weights = {name: value for name, value in theirs.state_dict().items() if name != "num_batches_tracked"}
    ours.load_state_dict(weights, strict=True)
    for x in (torch.randn(4, 5, generator=generator), torch.randn(4, 5, 7, generator=generator)):
        torch.testing.assert_close(ours(x), theirs(x), rtol=0, atol=0)
