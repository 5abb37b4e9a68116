"""The speaker encoder: one vector per clip, whatever the company, from as little as 45 ms."""

import math

import pytest
import torch

from s3gen import folded
from s3gen import speaker as module
from s3gen.config import S3GenConfig, SpeakerConfig
from s3gen.folded import FoldedCAMPPlus
from s3gen.speaker import SPEAKER_MIN_SAMPLES, SpeakerEncoder
from tests.conftest import relative_error

TINY = SpeakerConfig(mels=80, embed_dim=24, head_channels=4, init_channels=8, growth=4, bottleneck=2, blocks=(2, 3, 2))
EXACT = 1e-12  # float64 rounding over some thirty layers
ROUNDING = 1e-6  # the same in float32
LEAK = 1e-9  # what an empty position that is not empty must at least do, in float64


def make_encoder(config=TINY):
    """Random weights; a quarter of the batch norms' scales are negative, and some are nothing."""
    encoder = SpeakerEncoder(config)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, tensor in encoder.state_dict().items():
            values = torch.randn(tensor.shape, generator=generator)
            if name.endswith("running_var"):
                tensor.copy_(0.5 + values.abs())
                continue
            fan_in = tensor[0].numel() if tensor.dim() > 1 else 25
            is_scale = tensor.dim() == 1 and name.endswith("weight")
            tensor.copy_(values * fan_in**-0.5 + (1.0 if is_scale else 0.0))
            if is_scale:
                tensor[1::4] *= -1.0
                tensor[6::16] = 0.0
    return encoder


@pytest.fixture(scope="module")
def encoder():
    return make_encoder()


@pytest.fixture(scope="module")
def exact():
    return make_encoder().double()


def clip(samples, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return (0.1 * torch.randn(samples, generator=generator, dtype=torch.float64)).to(dtype)


def features_of(lengths):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(length, TINY.mels, generator=generator, dtype=torch.float64) for length in lengths]


@torch.no_grad()
def plain(encoder, features):
    return torch.stack([encoder.embed(rows[None])[0] for rows in features])


@torch.no_grad()
def fast(encoder, features):
    return FoldedCAMPPlus(encoder.head, encoder.xvector).embed(features)


# Odd and even, over two and over four segments of 200 frames, the shortest, neighbours of one length.
LENGTHS = [250, 3, 4, 801, 99, 250, 5, 200]


@pytest.mark.parametrize("lengths", [[3], [4], [200], [251], LENGTHS, LENGTHS[::-1]])
def test_folded_weights_and_clips_end_to_end_give_other_vectors(exact, lengths):
    features = features_of(lengths)
    for row, expected in zip(fast(exact, features), plain(exact, features), strict=True):
        assert relative_error(row, expected) < EXACT


def test_folding_costs_precision_in_float32(encoder):
    features = [rows.float() for rows in features_of(LENGTHS)]
    for row, expected in zip(fast(encoder, features), plain(encoder, features), strict=True):
        assert relative_error(row, expected) < ROUNDING


def test_folding_costs_precision_at_full_size(full_model):
    encoder = full_model.speaker_encoder
    features = [rows.float() for rows in features_of([140, 31])]
    for row, expected in zip(fast(encoder, features), plain(encoder, features), strict=True):
        assert relative_error(row, expected) < ROUNDING


def test_a_scale_too_small_for_the_dtype_makes_the_vector_infinite():
    encoder = make_encoder()
    with torch.no_grad():
        encoder.xvector.block1.tdnnd1.nonlinear1.batchnorm.weight[:2] = torch.tensor([1e-38, -1e-38])
        encoder.xvector.block1.tdnnd1.nonlinear1.batchnorm.bias[:2] = torch.tensor([9.0, 9.0])
    features = [rows.float() for rows in features_of([60])]
    assert relative_error(fast(encoder, features), plain(encoder, features)) < ROUNDING


# After each convolution of the head (10), and before that of each dense layer.
EMPTYINGS = 10 + sum(TINY.blocks)


class WithoutOne:
    """`folded._empty` that leaves out its n-th call."""

    def __init__(self, skip):
        self.skip, self.calls, self.emptied = skip, 0, folded._empty

    def __call__(self, x, gaps):
        self.calls += 1
        return x if self.calls - 1 == self.skip else self.emptied(x, gaps)


def worst_difference_in_company(encoder):
    features = features_of([250, 77, 251, 30])
    rows = zip(fast(encoder, features), plain(encoder, features), strict=True)
    return max(relative_error(row, expected) for row, expected in rows)


def test_there_are_as_many_emptyings_as_are_tested(exact, monkeypatch):
    counter = WithoutOne(None)
    monkeypatch.setattr(folded, "_empty", counter)
    assert worst_difference_in_company(exact) < EXACT
    assert counter.calls == EMPTYINGS


@pytest.mark.parametrize("skip", range(EMPTYINGS))
def test_each_emptying_of_the_gaps_is_needed(exact, monkeypatch, skip):
    monkeypatch.setattr(folded, "_empty", WithoutOne(skip))
    assert worst_difference_in_company(exact) > LEAK


def test_clips_lie_too_close_together(exact, monkeypatch):
    monkeypatch.setattr(folded, "_GAP", 1)
    assert worst_difference_in_company(exact) > LEAK


def test_means_are_over_more_than_the_clip(exact, monkeypatch):
    membership = folded._membership

    def shifted(rows, size):
        clip, segment, sizes, owners = membership(rows, size)
        return clip.roll(1), segment, sizes, owners

    monkeypatch.setattr(folded, "_membership", shifted)
    assert worst_difference_in_company(exact) > LEAK


def test_a_clip_alone_equals_itself_in_a_batch(encoder, exact):
    lengths = (16_000, 720, 40_123, 16_000)
    for network, dtype, limit in ((encoder, torch.float32, ROUNDING), (exact, torch.float64, EXACT)):
        wavs = [clip(samples, seed, dtype) for seed, samples in enumerate(lengths)]
        together = network(wavs)
        assert together.shape == (4, 24)
        assert together.dtype == dtype
        for row, wav in zip(together, wavs, strict=True):
            assert relative_error(network([wav])[0], row) < limit
        assert torch.pdist(together).min() > 1e-3  # the weights do tell clips apart


def test_many_clips_go_through_in_several_batches_and_come_back_in_order(exact, monkeypatch):
    wavs = [clip(samples, seed, torch.float64) for seed, samples in enumerate((3_000, 9_000, 720, 5_000, 9_100))]
    together = exact(wavs)
    monkeypatch.setattr(module, "_CPU_BATCH_FRAMES", 60)
    for row, expected in zip(exact(wavs), together, strict=True):
        assert relative_error(row, expected) < EXACT


def test_the_same_call_gives_the_same_bits(encoder):
    wavs = [clip(samples, seed) for seed, samples in enumerate((16_000, 7_200, 9_999))]
    assert torch.equal(encoder(wavs), encoder(wavs))


def test_clips_of_one_length_may_share_a_batch_of_the_plain_layers(exact):
    features = torch.stack(features_of([250] * 3))
    with torch.no_grad():
        together = exact.embed(features)
    torch.testing.assert_close(together, plain(exact, features), rtol=0, atol=EXACT)


def test_float64_agrees_with_float32(encoder, exact):
    wav = clip(16_000, dtype=torch.float64)
    torch.testing.assert_close(exact([wav]).float(), encoder([wav.float()]), rtol=1e-3, atol=1e-3)


def test_folded_weights_outlive_those_that_they_were_made_from():
    encoder, other = make_encoder(), make_encoder()
    with torch.no_grad():
        other.xvector.tdnn.nonlinear.batchnorm.running_mean.add_(1.0)
    wav = clip(4_000)
    first, second = encoder([wav]), other([wav])
    assert relative_error(second, first) > 1e-3
    encoder.load_state_dict(other.state_dict())
    assert torch.equal(encoder([wav]), second)
    wrapped = torch.nn.ModuleDict({"speaker": encoder})
    wrapped.load_state_dict({f"speaker.{k}": v for k, v in make_encoder().state_dict().items()}, assign=True)
    assert torch.equal(encoder([wav]), first)
    wrapped.double()
    assert encoder([wav.double()]).dtype == torch.float64
    wrapped.float()
    with torch.no_grad():
        encoder.xvector.tdnn.nonlinear.batchnorm.running_mean.add_(1.0)
    assert torch.equal(encoder([wav]), second)


def test_folding_changes_the_weights_that_are_published(encoder):
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    encoder([clip(2_000)])
    after = encoder.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], value) for name, value in before.items())


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
