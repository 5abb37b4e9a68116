"""The tokens of many clips at once: each as if it were alone, and all of them, however long it is."""

from __future__ import annotations

import pytest
import torch

from s3gen import S3GenModel
from s3gen import hearing as module
from s3gen.tokenizer import merge_windows, split_windows, token_count
from tests.conftest import speech_like

# Seconds and rates, in no order; two of one length, and the shortest.
CLIPS = [(1.0, 16_000), (0.7, 24_000), (0.0127, 16_000), (1.0, 16_000), (2.345, 8_000), (0.7, 48_000)]


def test_a_clip_knows_its_company(tiny_model: S3GenModel, monkeypatch: pytest.MonkeyPatch) -> None:
    wavs = [speech_like(seconds, rate, seed=seed) for seed, (seconds, rate) in enumerate(CLIPS)]
    rates = [rate for _, rate in CLIPS]
    alone = [tiny_model.tokenize(wav, rate)[0][0] for wav, rate in zip(wavs, rates, strict=True)]
    for most in (6_000, 100):
        monkeypatch.setattr(module, "batch_frames", lambda device, most=most: most)
        together = tiny_model.tokenize_clips(wavs, rates)
        assert all(torch.equal(one, other) for one, other in zip(together, alone, strict=True))


def test_a_clip_whose_last_window_is_short_loses_tokens(tiny_model: S3GenModel) -> None:
    wav = speech_like(53.0, 16_000)
    (whole,) = tiny_model.tokenize_clips([wav], 16_000)
    cut, _ = tiny_model.tokenize(wav, 16_000)
    assert (len(whole), cut.shape[1]) == (53 * 25, 53 * 25 - 50)  # as many as the reference loses
    assert torch.equal(whole[: 50 * 25], cut[0, : 50 * 25])


@pytest.mark.parametrize("frames", [3_000, 3_001, 3_399, 5_200, 5_201, 5_599, 5_600, 5_601, 5_603, 8_000])
def test_windows_of_a_whole_clip_lose_or_double_a_frame(frames: int) -> None:
    mel = torch.arange(frames)[:, None]
    windows = split_windows(mel, whole=True)
    codes = [window[::4, 0] // 4 for window in windows]  # each token is its own number
    assert merge_windows(codes).tolist() == list(range(token_count(frames)))


def test_no_clips_and_bad_ones(tiny_model: S3GenModel) -> None:
    assert tiny_model.tokenize_clips([], 16_000) == []
    good = speech_like(0.5, 16_000)
    with pytest.raises(ValueError, match=r"wavs\[1\] is too short: 200 samples"):
        tiny_model.tokenize_clips([good, good[:200]], 16_000)
    with pytest.raises(ValueError, match="2 clips and 1 rates"):
        tiny_model.tokenize_clips([good, good], [16_000])
