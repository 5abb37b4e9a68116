"""Padding is what the parts are given, not what a plan says."""

from __future__ import annotations

import pytest

from benchmarks import padding, utterances
from benchmarks.contenders import Ours
from s3gen import S3GenModel


def test_padding_is_not_seen(tiny_model: S3GenModel) -> None:
    spoken = utterances.of_tokens([5, 15], (0.4, 0.4))
    ours = Ours(tiny_model, spoken, [[0, 1], [1]])
    found = padding.shares(tiny_model, lambda: [ours.speak(batch, 1) for batch in ours.batches])
    assert found["encoder"] == pytest.approx(1 - (15 + 25 + 25) / (2 * 25 + 25))
    assert found["vocoder"] == pytest.approx(1 - (5 + 15 + 15) / (2 * 15 + 15))


def test_model_is_watched_for_ever(tiny_model: S3GenModel) -> None:
    ours = Ours(tiny_model, utterances.of_tokens([5], (0.2, 0.2)), [[0]])
    with pytest.raises(ZeroDivisionError):
        padding.shares(tiny_model, lambda: 1 / 0)
    assert "encode" not in vars(tiny_model.flow)
    assert padding.shares(tiny_model, lambda: ours.speak([0], 1)) == {"encoder": 0, "vocoder": 0}
    assert "inference" not in vars(tiny_model.mel2wav)
