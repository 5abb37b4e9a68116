"""Where long utterances are cut."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from s3gen.constants import SILENCE_TOKEN
from s3gen.splitting import CONTEXT_TOKENS, LEAST_MAX_TOKENS, Splitting, pieces

ROWS = st.lists(st.sampled_from([0, 1, SILENCE_TOKEN, SILENCE_TOKEN]), min_size=1, max_size=900).map(np.array)


def speech(count: int, *pauses: tuple[int, int]) -> np.ndarray:
    """Tokens without silence but for these pauses: where each begins and how long it is."""
    tokens = np.arange(count) % 1_000
    for start, length in pauses:
        tokens[start : start + length] = SILENCE_TOKEN
    return tokens


@settings(deadline=None, max_examples=150)
@given(ROWS, st.integers(LEAST_MAX_TOKENS, 400))
def test_a_piece_is_longer_than_the_limit_or_a_token_is_lost(tokens, limit):
    parts = pieces(len(tokens), Splitting(max_tokens=limit).cuts(tokens))
    assert [parts[0].first, *(part.last for part in parts)] == [*(part.first for part in parts), len(tokens)]
    for part in parts:
        assert part.end - part.start <= limit
        assert part.start == max(0, part.first - CONTEXT_TOKENS)
        assert part.end == min(len(tokens), part.last + CONTEXT_TOKENS)
        assert part.first < part.last


@pytest.mark.parametrize("limit", [60, 100, 333, 1_500])
def test_a_cut_is_in_speech_though_there_are_pauses_everywhere(limit):
    tokens = speech(4_000, *((start, 3) for start in range(5, 3_990, 11)))
    cuts = Splitting(max_tokens=limit).cuts(tokens)
    assert len(cuts) >= 4_000 // limit
    assert all(tokens[cut - 1] == tokens[cut] == SILENCE_TOKEN for cut in cuts)


def test_a_row_of_the_limit_is_left_whole():
    splitting = Splitting(max_tokens=100)
    assert splitting.cuts(speech(100, (50, 6))) == []
    assert splitting.cuts(speech(101)) == [50]


def test_the_longest_pause_is_passed_over_for_a_nearer_one():
    assert Splitting(max_tokens=150).cuts(speech(200, (98, 2), (60, 7), (20, 30))) == [63]


def test_of_pauses_of_one_length_not_the_nearest_is_taken():
    assert Splitting(max_tokens=150).cuts(speech(200, (60, 4), (110, 4), (130, 4))) == [112]


def test_one_token_of_silence_is_taken_for_a_pause():
    assert Splitting(max_tokens=150).cuts(speech(200, (90, 1))) == [100]


def test_a_pause_at_an_edge_leaves_a_piece_of_nothing():
    assert Splitting(max_tokens=150).cuts(speech(200, (3, 9), (188, 9))) == [100]


def test_silence_is_another_token_of_another_model():
    tokens = speech(200, (60, 8))
    assert Splitting(max_tokens=150, silence_tokens=()).cuts(tokens) == [100]
    tokens[70:74] = [5, 6, 5, 6]
    assert Splitting(max_tokens=150, silence_tokens=(5, 6)).cuts(tokens) == [72]


def test_an_hour_of_silence_is_cut_for_ever():
    parts = pieces(90_000, Splitting(max_tokens=1_500).cuts(np.full(90_000, SILENCE_TOKEN)))
    assert len(parts) == 64


@pytest.mark.parametrize("limit", [LEAST_MAX_TOKENS - 1, 0, -5, 99.0, True, None])
def test_a_limit_that_leaves_no_room_is_refused_by_value(limit):
    with pytest.raises(ValueError, match=rf"max_tokens is {limit}, .* at least 48"):
        Splitting(max_tokens=limit)


@pytest.mark.parametrize("token", [-1, 6561, 4299.0, True, "4299"])
def test_silence_that_is_no_token_is_refused_by_value(token):
    with pytest.raises(ValueError, match=f"silence_tokens holds {token!r}"):
        Splitting(max_tokens=100, silence_tokens=(4299, token))


def test_one_token_of_silence_is_asked_for_its_length():
    with pytest.raises(ValueError, match=r"silence_tokens is 4299, but must be a list of tokens, such as \(4299,\)"):
        Splitting(max_tokens=100, silence_tokens=4299)


def test_a_splitting_is_another_by_the_type_that_it_is_written_in():
    given = Splitting(max_tokens=np.int64(100), silence_tokens=np.array([4299]))
    assert given == Splitting(max_tokens=100)
    assert {type(given.max_tokens), *map(type, given.silence_tokens)} == {int}
