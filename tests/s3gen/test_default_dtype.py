"""Another default dtype, as half-precision scripts leave it behind: loaded is what was saved, in float32."""

from __future__ import annotations

import pytest
import torch

from s3gen import HiFTNetModel, S3GenModel
from tests.conftest import random_tokens, speech_like
from tests.s3gen import cosyvoice_folder

CLIP, RATE = speech_like(0.8, 24_000), 24_000
TOKENS = random_tokens(6, seed=1)
TYPES = (torch.bfloat16, torch.float16, torch.float64)


@pytest.fixture(scope="module")
def folder(tiny_model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    tiny_model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def cosyvoice(tmp_path_factory):
    pytest.importorskip("onnx")
    folder = cosyvoice_folder.write_folder(tmp_path_factory.mktemp("cosyvoice"), cosyvoice_folder.tiny_model())
    return folder, tensors(S3GenModel.from_pretrained(folder))


@pytest.fixture(params=TYPES, ids=str)
def default(request, tiny_model):
    torch.set_default_dtype(request.param)
    yield request.param
    torch.set_default_dtype(torch.float32)


def tensors(model):
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def equal(made, expected):
    return made.keys() == expected.keys() and all(
        made[name].dtype == expected[name].dtype and torch.equal(made[name], expected[name]) for name in expected
    )


@pytest.mark.parametrize("where", ["saved", "random:tiny"])
def test_a_model_is_loaded_in_the_type_that_a_script_left_behind(tiny_model, folder, default, where):
    model = S3GenModel.from_pretrained(folder if where == "saved" else where)
    assert torch.get_default_dtype() == default
    assert equal(tensors(model), tensors(tiny_model))
    ref = model.embed_ref(CLIP, RATE)
    assert equal(ref, tiny_model.embed_ref(CLIP, RATE))
    assert torch.equal(model.tokenize(CLIP, RATE)[0], tiny_model.tokenize(CLIP, RATE)[0])
    assert torch.equal(model.inference(TOKENS, ref_dict=ref)[0], tiny_model.inference(TOKENS, ref_dict=ref)[0])


def test_a_vocoder_is_loaded_in_the_type_that_a_script_left_behind(tiny_model, folder, default):
    for where in (folder, "random:tiny"):
        assert equal(tensors(HiFTNetModel.from_pretrained(where)), tensors(tiny_model.mel2wav))


def test_cosyvoice_s_folder_is_read_in_the_type_that_a_script_left_behind(cosyvoice, default):
    folder, expected = cosyvoice
    assert equal(tensors(S3GenModel.from_pretrained(folder)), expected)


def test_chatterbox_s_file_is_read_in_the_type_that_a_script_left_behind(tiny_model, tmp_path, default):
    tiny_model.save_pretrained(tmp_path, format="chatterbox")
    assert equal(tensors(S3GenModel.from_pretrained(tmp_path)), tensors(tiny_model))
