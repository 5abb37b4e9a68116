"""The speaker encoder: one vector per clip, whatever the company, from as little as 45 ms."""

import math

import pytest
import torch
from torch import nn

from s3gen.config import S3GenConfig, SpeakerConfig
from s3gen.speaker import SPEAKER_MIN_SAMPLES, BatchNorm, SpeakerEncoder, StatsPool, segment_means

TINY = SpeakerConfig(mels=80, embed_dim=24, head_channels=4, init_channels=8, growth=4, bottleneck=2, blocks=(2, 3, 2))


def make_encoder():
    encoder = SpeakerEncoder(TINY)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, tensor in encoder.state_dict().items():
            values = torch.randn(tensor.shape, generator=generator)
            if name.endswith("running_var"):
                tensor.copy_(0.5 + values.abs())
            else:
                fan_in = tensor[0].numel() if tensor.dim() > 1 else 25
                is_scale = tensor.dim() == 1 and name.endswith("weight")
                tensor.copy_(values * fan_in**-0.5 + (1.0 if is_scale else 0.0))
    return encoder


@pytest.fixture(scope="module")
def encoder():
    return make_encoder()


def clip(samples, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return (0.1 * torch.randn(samples, generator=generator, dtype=torch.float64)).to(dtype)


def test_a_clip_alone_equals_itself_in_a_batch(encoder):
    wavs = [clip(samples, seed) for seed, samples in enumerate((16_000, 720, 40_123, 16_000))]
    together = encoder(wavs)
    assert together.shape == (4, 24)
    assert together.dtype == torch.float32
    for row, wav in zip(together, wavs, strict=True):
        assert torch.equal(encoder([wav])[0], row)
    assert torch.pdist(together).min() > 1e-3  # the weights do tell clips apart


def test_clips_of_one_length_may_share_a_batch(encoder):
    encoder = make_encoder().double()
    features = torch.randn(3, 250, 80, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        together = encoder.embed(features)
        alone = torch.cat([encoder.embed(row[None]) for row in features])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-12)


def test_float64_agrees_with_float32(encoder):
    wav = clip(16_000, dtype=torch.float64)
    torch.testing.assert_close(make_encoder().double()([wav]).float(), encoder([wav.float()]), rtol=1e-3, atol=1e-3)


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


def test_built_on_meta_it_loads_published_names_and_no_count_of_batches(encoder):
    before = torch.get_rng_state()
    with torch.device("meta"):
        built, full = SpeakerEncoder(TINY), SpeakerEncoder(S3GenConfig().speaker)
    assert torch.equal(torch.get_rng_state(), before)
    built.load_state_dict(encoder.state_dict(), strict=True, assign=True)
    assert torch.equal(built([clip(2_000)]), encoder([clip(2_000)]))

    shapes = {name: tuple(value.shape) for name, value in full.state_dict().items()}
    assert len(shapes) == 815
    assert shapes["head.layer1.0.shortcut.1.running_var"] == (32,)
    assert shapes["xvector.tdnn.linear.weight"] == (128, 320, 5)
    assert shapes["xvector.block2.tdnnd24.cam_layer.linear_local.weight"] == (32, 128, 3)
    assert shapes["xvector.transit3.linear.weight"] == (512, 1024, 1)
    assert shapes["xvector.dense.nonlinear.batchnorm.running_mean"] == (192,)
    blocks = (full.xvector.block1, full.xvector.block2, full.xvector.block3)
    assert [block.tdnnd1.cam_layer.linear_local.dilation for block in blocks] == [(1,), (2,), (2,)]
    assert not [name for name in shapes if "num_batches" in name or name.startswith("xvector.dense.nonlinear.weight")]


def test_silence_and_the_shortest_clip_have_finite_vectors(encoder):
    assert torch.isfinite(encoder([torch.zeros(16_000), clip(SPEAKER_MIN_SAMPLES)])).all()


@pytest.mark.parametrize(
    ("wavs", "message"),
    [
        ([], "wavs is empty"),
        ([clip(900), clip(719)], r"wavs\[1\] is too short: 719 samples \(44.9 ms at 16000 Hz\), where at least 720"),
        ([torch.full((900,), math.inf)], r"wavs\[0\] holds 900 value\(s\) that are not finite, the first is inf"),
        ([clip(900).double()], r"wavs\[0\] must be torch.float32 .* not torch.float64"),
        ([clip(900)[None]], r"wavs\[0\] must be 1-D, one channel, not of shape \(1, 900\)"),
    ],
)
def test_bad_audio_is_refused(encoder, wavs, message):
    with pytest.raises(ValueError, match=message):
        encoder(wavs)


def test_vectors_hold_no_autograd_graph(encoder):
    assert not encoder([clip(900)]).requires_grad
