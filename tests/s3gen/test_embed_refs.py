"""Many reference clips at once: each as if it were alone, in bounded batches, and no bad one gets in."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from s3gen import audio as audio_module
from s3gen import hearing as module
from s3gen.hearing import Hearing
from tests.conftest import relative_error, speech_like

EXACT = 1e-12
ROUNDING = 1e-5  # float32; a log-mel's weakest bins are differences of large numbers

# Seconds and rates, in no order; two of one length, one over a window of 30 s, the shortest.
CLIPS = [(1.0, 16_000), (0.7, 24_000), (31.2, 16_000), (0.0451, 44_100), (1.0, 16_000), (2.345, 8_000), (0.7, 48_000)]


def clips(dtype=torch.float32):
    return [speech_like(seconds, rate, seed=seed).to(dtype) for seed, (seconds, rate) in enumerate(CLIPS)]


RATES = [rate for _, rate in CLIPS]


@pytest.mark.parametrize(("name", "limit"), [("exact_model", EXACT), ("tiny_model", ROUNDING)])
def test_a_clip_knows_its_company(request, name, limit):
    model = request.getfixturevalue(name)
    wavs = clips(model.dtype)
    for order in (list(range(len(wavs))), [5, 1, 6, 0, 3, 2, 4]):
        together = model.embed_refs([wavs[i] for i in order], [RATES[i] for i in order])
        for ref, i in zip(together, order, strict=True):
            alone = model.embed_ref(wavs[i], RATES[i])
            assert list(ref) == list(alone)
            assert torch.equal(ref["prompt_token"], alone["prompt_token"])
            assert torch.equal(ref["prompt_token_len"], alone["prompt_token_len"])
            assert torch.equal(ref["prompt_feat_len"], alone["prompt_feat_len"])
            assert relative_error(ref["prompt_feat"], alone["prompt_feat"]) < limit
            assert relative_error(ref["embedding"], alone["embedding"]) < limit
            assert ref["prompt_feat"].shape[1] == 2 * ref["prompt_token"].shape[1] == int(ref["prompt_feat_len"])


def test_memory_grows_with_the_number_of_clips(exact_model, monkeypatch):
    wavs = clips(torch.float64)
    whole = exact_model.embed_refs(wavs, RATES)
    heard = []
    encode = exact_model.tokenizer.encode
    monkeypatch.setattr(exact_model.tokenizer, "encode", lambda low: heard.append([len(w) for w in low]) or encode(low))
    for batches in (module, audio_module):
        monkeypatch.setattr(batches, "batch_frames", lambda device: 200)
    pieces = exact_model.embed_refs(wavs, RATES)
    assert sum(len(batch) for batch in heard) == len(wavs)
    assert all(len(batch) == 1 or len(batch) * max(batch) // 160 <= 200 for batch in heard)
    for ref, expected in zip(pieces, whole, strict=True):
        assert torch.equal(ref["prompt_token"], expected["prompt_token"])
        assert relative_error(ref["embedding"], expected["embedding"]) < EXACT


def test_the_same_clips_give_other_bits_each_time(tiny_model):
    first, second = (tiny_model.embed_refs(clips(), RATES) for _ in range(2))
    for one, other in zip(first, second, strict=True):
        assert all(torch.equal(one[name], other[name]) for name in one)


def test_arrays_and_one_rate_for_all_are_refused(tiny_model):
    wavs = [speech_like(seconds, 16_000).double().numpy() for seconds in (0.5, 0.9)]
    first, second = tiny_model.embed_refs(wavs, np.int64(16_000))
    assert (int(first["prompt_token_len"]), int(second["prompt_token_len"])) == (12, 22)
    again = tiny_model.embed_refs(wavs, [16_000, np.int32(16_000)])
    assert torch.equal(second["prompt_token"], again[1]["prompt_token"])
    assert first["prompt_feat"].dtype == torch.float32


def test_no_clips_are_an_error(tiny_model):
    assert tiny_model.embed_refs([], 16_000) == []


GOOD = speech_like(0.5, 16_000)


@pytest.mark.parametrize(
    ("wavs", "rates", "message"),
    [
        (
            [GOOD, GOOD[:300]],
            16_000,
            r"wavs\[1\] is too short: 300 samples \(18.8 ms at 16000 Hz\), where at least 720",
        ),
        ([GOOD[:1_440]], 48_000, r"wavs\[0\] is too short: 1440 samples .* at least 2158 \(45.0 ms\)"),
        ([GOOD, torch.full((16_000,), torch.inf)], 16_000, r"wavs\[1\] holds 16000 value\(s\) that are not finite"),
        ([GOOD[None]], 16_000, r"wavs\[0\] must be 1-D"),
        ([GOOD, GOOD.to(torch.int16)], 16_000, r"wavs\[1\] .*int16"),
        ([GOOD], [16_000, 8_000], "1 clips and 2 rates"),
        ([GOOD, GOOD], [16_000, 44_101], "from 44101 to 16000"),
        ([GOOD], 16_000.0, "16000.0"),
    ],
)
def test_a_bad_clip_is_found_after_the_others_were_computed(tiny_model, monkeypatch, wavs, rates, message):
    monkeypatch.setattr(Hearing, "device", property(lambda _: pytest.fail("something was computed")))
    with pytest.raises(ValueError, match=message):
        tiny_model.embed_refs(wavs, rates)
