"""Batches of rows of different lengths."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from s3gen.ragged import length_mask, pad_rows, plan_batches, zero_padding


@settings(deadline=None, max_examples=100)
@given(st.lists(st.integers(1, 3000), max_size=60), st.integers(1, 20_000))
def test_every_row_is_in_one_batch_within_the_budget(lengths, budget):
    batches = plan_batches(lengths, budget)
    assert sorted(row for batch in batches for row in batch) == list(range(len(lengths)))
    for batch in batches:
        longest = max(lengths[row] for row in batch)
        assert len(batch) == 1 or len(batch) * longest <= budget
        assert lengths[batch[0]] == longest
    firsts = [lengths[batch[0]] for batch in batches]
    assert firsts == sorted(firsts, reverse=True)


def test_equal_rows_keep_their_order():
    assert plan_batches([5, 5, 9, 5], 10) == [[2], [0, 1], [3]]


def test_a_budget_of_nothing_is_refused_by_value():
    with pytest.raises(ValueError, match="0"):
        plan_batches([1], 0)


def test_the_mask_ends_with_each_row():
    mask = length_mask([2, 0, 3], torch.device("cpu"))
    assert mask.tolist() == [[True, True, False], [False] * 3, [True] * 3]
    assert length_mask([4, 4], torch.device("cpu")) is None


def test_rows_are_padded_on_the_right_with_zeros():
    padded = pad_rows([torch.ones(1, 2), torch.ones(3, 2)])
    assert padded[0].tolist() == [[1, 1], [0, 0], [0, 0]]
    masked = zero_padding(torch.full((2, 1, 3), 7.0), length_mask([1, 3], torch.device("cpu")))
    assert masked.tolist() == [[[7, 0, 0]], [[7, 7, 7]]]
