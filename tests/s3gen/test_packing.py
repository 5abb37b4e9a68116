"""Rows laid end to end."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from s3gen.packing import GAP, Packing

CPU = torch.device("cpu")


@given(st.lists(st.integers(1, 9), min_size=1, max_size=6), st.integers(0, 7), st.integers(1, 2))
def test_what_is_packed_comes_out_again_and_nothing_lies_between(lengths, spare, copies):
    needed = sum(lengths) + GAP * len(lengths)
    packing = Packing(lengths, CPU, copies=copies, size=needed + spare)
    rows = [torch.rand(length, 3) + 1 for length in lengths]
    packed = packing.pack(rows)
    assert packed.shape == (needed + spare, 3)
    for row, out in zip(rows, packing.split(packed), strict=True):
        assert torch.equal(out, row)
    everywhere = torch.ones(copies * packing.size, 1)
    assert packing.empty(everywhere).sum() == copies * sum(lengths)
    assert torch.equal(packed != 0, packing.empty(torch.ones(packing.size, 3)) != 0)


def test_every_row_ends_with_the_empty_positions_that_a_convolution_looks_back():
    packing = Packing([3, 1], CPU, copies=2)
    assert packing.runs() == [(0, 3), (5, 6), (8, 11), (13, 14)]
    assert packing.gaps.tolist() == [3, 4, 6, 7, 11, 12, 14, 15]


def test_a_short_row_is_followed_by_zeros_up_to_its_end():
    packing = Packing([3, 2], CPU)
    assert packing.pack([torch.ones(1, 1), torch.ones(2, 1)])[:, 0].tolist() == [1, 0, 0, 0, 0, 1, 1, 0, 0]


@given(st.lists(st.integers(1, 9), min_size=1, max_size=6), st.integers(0, 30), st.integers(1, 2))
def test_runs_cover_everything_and_none_is_longer_than_the_longest_row(lengths, spare, copies):
    packing = Packing(lengths, CPU, copies=copies, size=sum(lengths) + GAP * len(lengths) + spare)
    bounds = packing.bounds.tolist()
    pairs = set(itertools.pairwise(bounds))
    assert bounds == sorted(set(bounds))
    assert (bounds[0], bounds[-1]) == (0, copies * packing.size)
    assert set(packing.runs()) <= pairs
    assert max(end - start for start, end in pairs) <= max(packing.longest, GAP)


@pytest.mark.parametrize(("lengths", "size"), [([], None), ([3, 0], None), ([3], 4)])
def test_what_cannot_be_packed_is_refused(lengths, size):
    with pytest.raises(ValueError, match=r"packed|fit"):
        Packing(lengths, CPU, size=size)
