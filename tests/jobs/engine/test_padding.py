"""Padding by rule is the padding that there is."""

from __future__ import annotations

import pytest

from benchmarks import padding as watched
from benchmarks import utterances
from benchmarks.contenders import Ours
from jobs.engine.padding import Padding, grouped, vocoded
from s3gen import S3GenModel


def test_the_model_groups_its_rows_by_another_rule(tiny_model: S3GenModel) -> None:
    spoken = [3, 5, 12, 13, 30, 31, 47, 90]
    voice = 10
    ours = Ours(tiny_model, utterances.of_tokens(spoken, (voice / 25, voice / 25)), [list(range(len(spoken)))])
    found = watched.shares(tiny_model, lambda: ours.speak(ours.batches[0], 1))
    assert 0 < found["vocoder"] == pytest.approx(vocoded(spoken, "cpu").share)
    assert 0 < found["encoder"] == pytest.approx(grouped([voice + tokens for tokens in spoken], "cpu").share)


def test_sums_of_nothing_divide_by_zero() -> None:
    sums = Padding()
    assert sums.share == 0.0
    sums.add(vocoded([], "cpu"))
    sums.add(vocoded([2, 1], "cuda"))
    assert (sums.positions, sums.padding, sums.share) == (8, 2, 0.25)
