"""A caller's autocast, as around a language model that speaks: it changes nothing here, and takes nothing away."""

from __future__ import annotations

import pytest
import torch

from s3gen import Stream
from s3gen.stream_vocoder import VocoderStream
from tests.conftest import random_tokens, speech_like

CLIP, RATE = speech_like(0.8, 16_000), 16_000
TOKENS = random_tokens(6, seed=1)
MEL = torch.randn(2, 80, 9, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def ref(tiny_model):
    return tiny_model.embed_ref(CLIP, RATE)


def pushed(model, ref):
    stream = Stream(model.synthesis, ref, chunk_tokens=2)
    return [*stream.push(TOKENS), *stream.finish()]


def vocoded(model, _):
    stream = VocoderStream(model.mel2wav)
    first, state = stream.step(stream.begin(7, rows=2), MEL, least=1)
    return [first, stream.finish(state)]


CALLS = {
    "embed_ref": lambda m, _: list(m.embed_ref(CLIP, RATE).values()),
    "embed_refs": lambda m, _: [value for one in m.embed_refs([CLIP, CLIP[:9_000]], 24_000) for value in one.values()],
    "tokenize": lambda m, _: list(m.tokenize(CLIP, RATE)),
    "tokenize_clips": lambda m, _: m.tokenize_clips([CLIP, CLIP[:9_000]], 24_000),
    "forward": lambda m, ref: [m(TOKENS, ref_dict=ref)],
    "inference": lambda m, ref: list(m.inference(TOKENS, ref_dict=ref)),
    "inference of a clip": lambda m, _: list(m.inference(TOKENS, ref_wav=CLIP, ref_sr=RATE)),
    "synthesize": lambda m, ref: m.synthesize([TOKENS, TOKENS[:2]], [ref, ref]),
    "stream": lambda m, ref: list(m.stream(TOKENS, ref_dict=ref, chunk_tokens=2)),
    "Stream": pushed,
    "VocoderStream": vocoded,
    "mel2wav.inference": lambda m, _: list(m.mel2wav.inference(MEL, lengths=[9, 4])),
    "mel2wav.f0": lambda m, _: [m.mel2wav.f0(MEL)],
    "mel2wav.source": lambda m, _: [m.mel2wav.source(torch.full((1, 4), 200.0))],
    "mel2wav.decode": lambda m, _: [m.mel2wav.decode(MEL, torch.full((2, 1, 9 * 480), 0.1))],
    "tokenizer": lambda m, _: list(m.tokenizer([CLIP, CLIP[:9_000]])),
    "speaker_encoder": lambda m, _: [m.speaker_encoder([CLIP, CLIP[:9_000]])],
    "prompt_mel": lambda m, _: [m.prompt_mel(CLIP)],
}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_a_loop_s_autocast_gets_into_the_model(tiny_model, ref, call, dtype):
    expected = call(tiny_model.prepare(), ref)
    for model in (tiny_model, tiny_model.prepare()):  # with copies of the weights made outside of autocast, and within
        with torch.autocast("cpu", dtype=dtype):
            made = call(model, ref)
        assert all(torch.equal(one, other) for one, other in zip(made, expected, strict=True))


def test_the_loop_loses_its_autocast(tiny_model, ref):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for _ in tiny_model.stream(TOKENS, ref_dict=ref, chunk_tokens=2):
            assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.bfloat16


def test_autocast_does_nothing_to_a_model_that_is_not_kept_out_of_it():
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.nn.Linear(2, 2)(torch.ones(2)).dtype == torch.bfloat16
