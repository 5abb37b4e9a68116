"""Rows laid end to end."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from s3gen.packing import GAP, Packing

CPU = torch.device("cpu")


LENGTHS = st.lists(st.integers(1, 9), min_size=1, max_size=6)


@given(LENGTHS, st.integers(1, 2), st.booleans())
def test_what_is_packed_comes_out_again_and_nothing_lies_between(lengths, copies, rounded):
    packing = Packing(lengths, CPU, copies=copies, rounded=rounded)
    rows = [torch.rand(length, 3) + 1 for length in lengths]
    packed = packing.pack(rows)
    assert packed.shape == (packing.size, 3)
    assert packing.size >= sum(lengths) + GAP * len(lengths)
    for row, out in zip(rows, packing.split(packed), strict=True):
        assert torch.equal(out, row)
    everywhere = packing.empty(torch.ones(copies * packing.size, 3))
    assert torch.equal((packed != 0).repeat(copies, 1), everywhere != 0)


@given(LENGTHS, LENGTHS, st.integers(1, 2))
def test_rounded_packings_of_one_shape_fit_each_others_memory(lengths, others, copies):
    first, second = (Packing(rows, CPU, copies=copies, rounded=True) for rows in (lengths, others))
    if first.shape == second.shape:
        assert (first.gaps.shape, first.bounds.shape) == (second.gaps.shape, second.bounds.shape)
        assert (first.size, first.longest) == (second.size, second.longest)


@given(st.lists(st.integers(60, 2000), min_size=1, max_size=80))
def test_rounding_adds_little(lengths):
    exact, rounded = Packing(lengths, CPU), Packing(lengths, CPU, rounded=True)
    assert exact.size <= rounded.size <= max(exact.size * 17 / 16, exact.size + 64)


def test_every_row_ends_with_the_empty_positions_that_a_convolution_looks_back():
    packing = Packing([3, 1], CPU, copies=2)
    assert packing.runs() == [(0, 3), (5, 6), (8, 11), (13, 14)]
    assert packing.gaps.tolist() == [3, 4, 6, 7, 11, 12, 14, 15]


def test_a_short_row_is_followed_by_zeros_up_to_its_end():
    packing = Packing([3, 2], CPU)
    assert packing.pack([torch.ones(1, 1), torch.ones(2, 1)])[:, 0].tolist() == [1, 0, 0, 0, 0, 1, 1, 0, 0]


@given(LENGTHS, st.integers(1, 2), st.booleans())
def test_runs_cover_everything_and_none_is_longer_than_the_longest(lengths, copies, rounded):
    packing = Packing(lengths, CPU, copies=copies, rounded=rounded)
    bounds = packing.bounds.tolist()
    pairs = set(itertools.pairwise(bounds))
    assert bounds == sorted(bounds)
    assert rounded or len(set(bounds)) == len(bounds)
    assert (bounds[0], bounds[-1]) == (0, copies * packing.size)
    assert set(packing.runs()) <= pairs
    assert max(end - start for start, end in pairs) <= max(packing.longest, GAP)


@pytest.mark.parametrize("lengths", [[], [3, 0]])
def test_what_cannot_be_packed_is_refused(lengths):
    with pytest.raises(ValueError, match="packed"):
        Packing(lengths, CPU)
