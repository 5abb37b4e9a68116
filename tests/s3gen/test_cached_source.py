"""A source that was heard before: what fits is a matter of the whole batch, and of no group that it is made in."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.conftest import random_tokens, relative_error, speech_like

FRAME = 480
MEL = torch.randn(3, 80, 12, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def ref(tiny_model):
    return tiny_model.embed_ref(speech_like(0.6, 16_000), 16_000)


def both_calls(model, ref):
    """Whole and vocoder alone, of 3 rows of 12 frames, given a cache."""
    tokens = torch.stack([random_tokens(6, seed) for seed in range(3)])
    return (
        lambda cache: model.inference(tokens, ref_dict=ref, cache_source=cache, n_cfm_timesteps=1),
        lambda cache: model.mel2wav.inference(MEL, cache),
    )


@pytest.mark.parametrize(
    ("cache", "shown"),
    [
        (torch.zeros(5), r"\(1 or 3, 1, samples\), not \(5,\)"),
        (torch.zeros(1, 5), r"\(1, 5\)"),
        (torch.zeros(1, 0), r"\(1, 0\)"),
        (torch.zeros(1, 2, 5), r"\(1, 2, 5\)"),
        (torch.zeros(2, 1, 5), r"\(2, 1, 5\)"),
        (torch.zeros(4, 1, 5), r"\(4, 1, 5\)"),
        (torch.zeros(0, 1, 5), r"\(0, 1, 5\)"),
        (torch.zeros(1, 1, 12 * FRAME + 1), "5761 samples, the source only 5760"),
        (np.zeros((1, 1, 5), np.float32), "a tensor, not ndarray"),
    ],
)
def test_a_cache_that_does_not_fit_is_taken_by_one_of_the_two_calls(tiny_model, ref, cache, shown):
    for call in both_calls(tiny_model, ref):
        with pytest.raises(ValueError, match=shown):
            call(cache)


def test_a_row_of_a_cache_that_one_row_cannot_have_is_dropped(tiny_model, ref):
    with pytest.raises(ValueError, match=r"\(1, 1, samples\), not \(2, 1, 5\)"):
        tiny_model.inference([1, 2], ref_dict=ref, cache_source=torch.zeros(2, 1, 5))


@pytest.mark.parametrize("rows", [1, 3])
def test_rows_have_each_other_s_cache(tiny_model, ref, rows):
    cache = torch.rand(rows, 1, 700) - 0.5
    for call in both_calls(tiny_model, ref):
        source = call(cache)[1]
        assert torch.equal(source[..., :700], cache.expand(3, -1, -1))
        assert torch.equal(source[..., 700:], call(None)[1][..., 700:])


@pytest.mark.parametrize("longest", [30, 150])  # in one group of the vocoder with the short row, and in another
def test_whether_a_cache_fits_depends_on_the_company(tiny_model, ref, longest):
    cache = torch.full((1, 1, 25 * 960), 0.1)
    rows = [random_tokens(longest, 1), random_tokens(20, 2)]
    padded, lengths = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True), [longest, 20]
    waves, source = tiny_model.inference(
        padded, ref_dict=ref, speech_token_lens=lengths, cache_source=cache, n_cfm_timesteps=1, seed=[1, 2]
    )
    assert torch.equal(source[0, 0, : 25 * 960], cache[0, 0])
    assert torch.equal(source[1, 0, : 20 * 960], cache[0, 0, : 20 * 960])
    assert not source[1, 0, 20 * 960 :].any()
    alone = tiny_model.inference(rows[1], ref_dict=ref, cache_source=cache[..., : 20 * 960], n_cfm_timesteps=1, seed=2)
    assert relative_error(waves[1, : 20 * 960], alone[0][0]) < 1e-3


def test_a_source_sounds_on_behind_its_row_s_end(tiny_model):
    cache = torch.full((1, 1, 11 * FRAME), 0.1)
    waves, source = tiny_model.mel2wav.inference(MEL, cache, lengths=[12, 5, 9])
    for row, length in ((1, 5), (2, 9)):
        assert bool((source[row, 0, : length * FRAME] == 0.1).all())
        assert not source[row, 0, length * FRAME :].any()
        assert not waves[row, length * FRAME :].any()
