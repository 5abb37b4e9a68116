"""A row that begins in the middle of its utterance: its noise is that of the whole, and its beginning is not faded."""

from __future__ import annotations

import torch

from s3gen import noise
from s3gen.constants import FRAMES_PER_TOKEN, MEL_BINS
from s3gen.noise import Stream
from s3gen.synthesis import Utterance
from tests.conftest import random_tokens

CPU = torch.device("cpu")


def test_the_noise_of_rows_that_begin_elsewhere_is_another():
    whole = noise.normal([7, 8], Stream.SOURCE, 12, 10, device=CPU)
    parts = noise.normal([7, 8], Stream.SOURCE, 4, 10, device=CPU, start=[0, 8])
    assert torch.equal(parts[0], whole[0, :4])
    assert torch.equal(parts[1], whole[1, 8:])
    assert torch.equal(noise.uniform([7], Stream.PHASE, 2, 5, device=CPU, start=[3])[0, 0],
                       noise.uniform([7], Stream.PHASE, 4, 5, device=CPU)[0, 3])  # fmt: skip


def test_the_source_of_a_later_piece_begins_with_the_first_frames_noise(tiny_model):
    source = tiny_model.mel2wav.source
    silent = torch.zeros(2, 9)  # no pitch: nothing but noise
    whole = source(silent, seed=[1, 2])
    later = source(silent[:, :4], seed=[1, 2], start=[5, 3])
    each = source.frame_samples
    assert torch.equal(later[0], whole[0, :, 5 * each :])
    assert torch.equal(later[1], whole[1, :, 3 * each : 7 * each])


def test_the_flow_noise_of_a_piece_is_that_of_other_frames(tiny_model, voices):
    """In a batch with a row that begins at its beginning, and voices of other lengths."""
    tokens, piece = random_tokens(20, 1), slice(6, 15)
    rows = [
        Utterance(tokens, voices[0], 5),
        Utterance(tokens[piece], voices[0], 5, start=FRAMES_PER_TOKEN * piece.start),
        Utterance(tokens[:3], voices[1], 9),
    ]
    drawn = tiny_model.synthesis._drawn(rows, [row.frames(finalize=True) for row in rows])
    prompt = len(voices[0].prompt_feat)
    assert torch.equal(drawn[1][:prompt], drawn[0][:prompt])
    kept = slice(prompt + FRAMES_PER_TOKEN * piece.start, prompt + FRAMES_PER_TOKEN * piece.stop)
    assert torch.equal(drawn[1][prompt:], drawn[0][kept])
    other = noise.normal([9], Stream.FLOW, len(drawn[2]), MEL_BINS, device=CPU)[0]
    assert torch.equal(drawn[2], other)
