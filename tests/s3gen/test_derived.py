"""What was derived from weights goes on sounding like them, however they are written."""

from __future__ import annotations

import pytest
import torch

from s3gen import S3GenModel
from tests.conftest import random_tokens, relative_error, speech_like

CLIP, RATE = speech_like(0.8, 16_000), 16_000
TOKENS = random_tokens(6, seed=1)


def through_data(weight):
    weight.data.mul_(0.8)


def through_numpy(weight):
    weight.numpy()[...] *= 0.8


@torch.inference_mode()
def in_inference_mode(weight):
    weight.mul_(0.8)


def through_torch(weight):
    weight.mul_(0.8)


def heard(model):
    ref = model.embed_ref(CLIP, RATE)
    return ref["embedding"], model(TOKENS, ref_dict=ref, finalize=True)


@pytest.mark.parametrize("write", [through_data, through_numpy, in_inference_mode, through_torch])
def test_what_is_heard_after_prepare_is_not_what_is_saved(write, tmp_path):
    with torch.inference_mode(write is in_inference_mode):  # torch counts no writing to what is made there
        model = S3GenModel.from_pretrained("random:tiny")
    before = heard(model)
    for weight in [*model.flow.estimator.parameters(), *model.speaker_encoder.parameters()]:
        write(weight)
    after = heard(model if write is through_torch else model.prepare())
    model.save_pretrained(tmp_path)
    for made, saved, old in zip(after, heard(S3GenModel.from_pretrained(tmp_path)), before, strict=True):
        assert torch.equal(made, saved)
        assert relative_error(made, old) > 1e-2
