"""Utterances that are made in pieces."""

from __future__ import annotations

import re

import pytest
import torch

from s3gen import S3GenModel, Splitting, Voice
from s3gen.constants import SAMPLES_PER_TOKEN, SILENCE_TOKEN
from s3gen.crossfade import join
from s3gen.splitting import pieces
from tests.conftest import random_tokens, relative_error

SPLITTING = Splitting(max_tokens=60)
HALF = SAMPLES_PER_TOKEN // 2


def long_row(count: int = 100, seed: int = 3, pause: int = 40) -> torch.Tensor:
    tokens = random_tokens(count, seed)
    tokens[pause : pause + 4] = SILENCE_TOKEN
    return tokens


def test_the_pieces_are_made_another_way_than_as_rows(tiny_model: S3GenModel, voices: list[Voice]) -> None:
    """What is asked for as a whole is what its pieces make, each asked for alone, and joined."""
    row, short = long_row(), random_tokens(9, 1)
    assert SPLITTING.cuts(row.numpy()) == [42, 71]
    whole, other = tiny_model.synthesize([row, short], [voices[0], voices[1]], [7, 8], splitting=SPLITTING)
    assert (len(whole), len(other)) == (100 * SAMPLES_PER_TOKEN, 9 * SAMPLES_PER_TOKEN)
    parts = pieces(len(row), [42, 71])
    made = [
        tiny_model.synthesize([row[part.start : part.end]], [voices[0]], [7], starts=[part.start])[0] for part in parts
    ]
    assert relative_error(whole, join(parts, made)) < 1e-3
    assert relative_error(other, tiny_model.synthesize([short], [voices[1]], [8])[0]) < 1e-3


def test_a_row_within_the_limit_is_another_for_it(tiny_model: S3GenModel, voices: list[Voice]) -> None:
    rows = [long_row(60), random_tokens(9, 1)]
    with_limit = tiny_model.synthesize(rows, voices[:2], [7, 8], splitting=SPLITTING)
    for got, want in zip(with_limit, tiny_model.synthesize(rows, voices[:2], [7, 8]), strict=True):
        assert torch.equal(got, want)


def test_every_piece_begins_with_silence(tiny_model: S3GenModel, voices: list[Voice]) -> None:
    """The fade hides what the prompt spills into the beginning, and there is one beginning."""
    row, part = long_row(), slice(30, 83)
    faded = tiny_model.synthesize([row], voices[:1], splitting=SPLITTING)[0]
    plain = tiny_model.synthesize([row], voices[:1], splitting=SPLITTING, start_fade=False)[0]
    assert not faded[:HALF].any()
    assert torch.equal(faded[SAMPLES_PER_TOKEN:], plain[SAMPLES_PER_TOKEN:])
    both = tiny_model.synthesize([row[part], row[part]], voices[:1] * 2, starts=[0, 30])
    assert not both[0][:HALF].any()
    assert both[1][:HALF].abs().max() > 0


def test_pieces_have_the_noise_of_other_pieces(tiny_model: S3GenModel, voices: list[Voice]) -> None:
    row = long_row()[:50]
    here, there = tiny_model.synthesize([row, row], voices[:1] * 2, starts=[5, 6])
    assert relative_error(there, here) > 0.01


@pytest.mark.parametrize("starts", [[0], [0, -1], [0, 1, 2], [0, 1.0], [0, True], [0, 2**62], [0, None]])
def test_starts_that_do_not_fit_are_refused_by_value(
    tiny_model: S3GenModel, voices: list[Voice], starts: list[int]
) -> None:
    with pytest.raises(ValueError, match=rf"starts is {re.escape(str(starts))}, but must"):
        tiny_model.synthesize([[1, 2], [3]], voices[:2], starts=starts)


def test_a_splitting_that_is_none_ends_in_what_it_lacks(tiny_model: S3GenModel, voices: list[Voice]) -> None:
    with pytest.raises(ValueError, match=r"splitting is 60, but must be an s3gen\.Splitting"):
        tiny_model.synthesize([[1, 2]], voices[:1], splitting=60)
