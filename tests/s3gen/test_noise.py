"""Noise: the published Philox vectors, and independence of everything but seed, stream and frame."""

import numpy as np
import pytest
import torch

from s3gen.noise import Stream, check_seed, normal, per_row, philox, uniform

CPU = torch.device("cpu")

# Random123's kat_vectors for philox4x32-10: counter, key, output.
KNOWN = [
    ([0] * 4, [0] * 2, [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
    ([0xFFFFFFFF] * 4, [0xFFFFFFFF] * 2, [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
    (
        [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
        [0xA4093822, 0x299F31D0],
        [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
    ),
]


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN)
def test_philox_gives_the_published_vectors(counter, key, expected):
    words = philox([torch.tensor([word]) for word in counter], [torch.tensor([word]) for word in key])
    assert [int(word) for word in words] == expected


@pytest.mark.parametrize("draw", [normal, uniform])
def test_a_longer_utterance_begins_like_a_shorter_one(draw):
    short = draw([7], Stream.FLOW, 5, 80, device=CPU)
    long = draw([7], Stream.FLOW, 500, 80, device=CPU)
    assert torch.equal(long[:, :5], short)


def test_any_frames_can_be_drawn_on_their_own():
    whole = normal([7], Stream.SOURCE, 20, 90, device=CPU)
    assert torch.equal(normal([7], Stream.SOURCE, 8, 90, device=CPU, start=12), whole[:, 12:])


def test_a_row_does_not_know_its_batch():
    together = normal([3, 9, 3], Stream.FLOW, 11, 80, device=CPU)
    assert torch.equal(together[1], normal([9], Stream.FLOW, 11, 80, device=CPU)[0])
    assert torch.equal(together[0], together[2])
    assert not torch.equal(together[0], together[1])


def test_streams_and_seeds_differ():
    drawn = [normal([seed], stream, 4, 9, device=CPU) for seed in (0, 1, 2**32, -1) for stream in Stream]
    assert len({tuple(values.flatten().tolist()) for values in drawn}) == len(drawn)


def test_normal_noise_is_normal():
    values = normal([1, 2], Stream.FLOW, 5000, 80, device=CPU).double().flatten()
    assert abs(float(values.mean())) < 0.005
    assert abs(float(values.std()) - 1) < 0.005
    assert abs(float((values**4).mean()) - 3) < 0.05
    neighbours = normal([1, 2], Stream.FLOW, 5000, 80, device=CPU).double()
    assert abs(float((neighbours[:, 1:] * neighbours[:, :-1]).mean())) < 0.005
    assert abs(float((neighbours[0] * neighbours[1]).mean())) < 0.005


def test_uniform_noise_is_uniform():
    values = uniform([5], Stream.PHASE, 20_000, 9, device=CPU)
    assert 0 < float(values.min()) < 0.001
    assert 0.999 < float(values.max()) <= 1
    assert abs(float(values.double().mean()) - 0.5) < 0.005


def test_a_signed_seed_is_its_unsigned_twin():
    assert torch.equal(normal([-1], Stream.FLOW, 2, 8, device=CPU), normal([2**64 - 1], Stream.FLOW, 2, 8, device=CPU))


@pytest.mark.parametrize("seed", [2**64, -(2**63) - 1, 1.0, "1", True, None])
def test_a_seed_out_of_range_is_refused_by_value(seed):
    with pytest.raises(ValueError, match=str(seed)):
        check_seed(seed)


def test_one_seed_serves_all_rows_and_numpys_integers_are_integers():
    assert per_row(7, 3) == [7, 7, 7]
    assert per_row(np.array([1, 2]), 2) == per_row([np.uint64(1), 2], 2) == [1, 2]
    assert per_row(np.int64(-5), 1) == [-5]
    with pytest.raises(ValueError, match="2 seeds"):
        per_row([1, 2], 3)
