"""Token checks: whatever is wrong is said on the CPU, with the value."""

from collections import deque

import numpy as np
import pytest
import torch

from s3gen.tokens import check_tokens, split_tokens


@pytest.mark.parametrize(
    "tokens",
    [
        [0, 6560],
        (5,),
        [torch.tensor(1), 2],
        deque([torch.tensor(3)]),
        np.array([1, 2], np.uint16),
        np.array([3], np.uint64),
        torch.tensor([4], dtype=torch.int16),
    ],
)
def test_integers_of_any_width_are_taken(tokens):
    row = check_tokens(tokens)
    assert row.dtype == torch.int64
    assert row.tolist() == [int(token) for token in tokens]


@pytest.mark.parametrize(
    ("tokens", "shown"),
    [
        ([1, 6561], "6561 at position 1"),
        ([-1], "-1 at position 0"),
        (np.array([2**64 - 1], np.uint64), str(2**64 - 1)),
        (torch.tensor([7, 2**40]), str(2**40)),
        ([], "empty"),
        (torch.zeros(0, dtype=torch.int64), "empty"),
        ([1.5], "1.5"),
        (np.array([]), "float64"),
        (torch.tensor([1.0]), "float32"),
        (torch.tensor([True]), "bool"),
        (["a"], "integers"),
        ([None], "integers"),
        ([[1, 2]], r"\(1, 2\)"),
        (torch.tensor(3), r"\(\)"),
        ([torch.tensor(1.5)], "integers"),
        ([torch.tensor([1, 2]), torch.tensor([3])], "inhomogeneous"),
    ],
)
def test_bad_tokens_are_refused_with_the_value(tokens, shown):
    with pytest.raises(ValueError, match=shown):
        check_tokens(tokens)


def test_a_batch_is_split_at_its_lengths():
    rows = split_tokens(torch.tensor([[1, 2, 9999], [3, 4, 5]]), torch.tensor([2, 3]))
    assert [row.tolist() for row in rows] == [[1, 2], [3, 4, 5]]
    assert [row.tolist() for row in split_tokens([8, 9], None)] == [[8, 9]]


@pytest.mark.parametrize(
    ("lengths", "shown"),
    [([0, 3], "0"), ([4, 3], "4"), ([3], "1 entries"), ([1.5, 2], "speech_token_lens must be integers")],
)
def test_bad_lengths_are_refused_with_the_value(lengths, shown):
    with pytest.raises(ValueError, match=shown):
        split_tokens(torch.zeros(2, 3, dtype=torch.int64), lengths)


@pytest.mark.parametrize("shape", [(0, 3), (1, 0), (1, 1, 1)])
def test_empty_and_deep_batches_are_refused(shape):
    with pytest.raises(ValueError, match=r"empty|shape"):
        split_tokens(torch.zeros(shape, dtype=torch.int64), None)
