"""Every public call on a device that is not the CPU, where what is the CPU's, or numpy's, cannot be mixed in."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from s3gen import S3GenConfig, S3GenModel, Splitting, Stream, Voice
from s3gen.stream_vocoder import VocoderStream
from tests.conftest import random_tokens, relative_error, speech_like
from tests.s3gen.standin_device import DEVICE, StandinDevice, StandinTensor, on_standin

CLIP, RATE = speech_like(1.0, 16_000), 16_000
TOKENS = random_tokens(9, seed=1)
MEL, WAVE = 1e-5, 1e-3  # what the same rows may differ by in other batches: those of CUDA are larger

MODELS = {
    "chatterbox": S3GenConfig.tiny(),
    "turbo": dataclasses.replace(S3GenConfig.tiny(), meanflow=True),
    "cosyvoice2": dataclasses.replace(S3GenConfig.tiny(), vocoder_harmonic_source="sinegen2", encode_lookahead=False),
}


@pytest.fixture(scope="module", params=MODELS.values(), ids=MODELS)
def models(request):
    """The same model on the CPU, and on the device."""
    return S3GenModel._random(request.param), on_standin(S3GenModel._random(request.param))


@pytest.fixture(scope="module")
def cpu(models):
    return models[0]


@pytest.fixture(scope="module")
def stored(cpu):
    """A voice as it was made on the CPU."""
    return cpu.embed_ref(CLIP, RATE)


@pytest.fixture
def gpu(models):
    with StandinDevice():
        yield models[1]


def on_device(made: torch.Tensor) -> torch.Tensor:
    """What came back, on the CPU, if it was on the device."""
    assert made.device == DEVICE
    return made.cpu()


def close(made: torch.Tensor, expected: torch.Tensor, limit: float) -> bool:
    return relative_error(on_device(made), expected) < limit


def test_the_device_takes_what_cuda_refuses():
    with StandinDevice():
        there, here = torch.ones(2, device=DEVICE), torch.ones(2)
        for refused in (
            lambda: there + here,
            lambda: torch.stack([here, there]),
            lambda: torch.dot(here, there),
        ):
            with pytest.raises(RuntimeError, match="same device"):
                refused()
        for refused in (there.numpy, lambda: np.asarray(there), lambda: np.asarray([there[0], there[1]])):
            with pytest.raises(TypeError, match="numpy"):
                refused()
        assert {type(there * 2), type(here.to(there)), *map(type, there)} == {StandinTensor}
        assert {type(there.cpu()), type(there.to("cpu", torch.int64)), type(there.tolist()[0])} == {torch.Tensor, float}
        assert (there * torch.tensor(3.0))[torch.tensor([0])].tolist() == [3.0]


def test_what_was_heard_on_a_gpu_cannot_be_spoken_there(gpu, cpu, stored):
    expected, _ = cpu.inference(TOKENS, ref_dict=stored)
    ref = gpu.embed_ref(CLIP, RATE)
    assert {value.device for value in ref.values()} == {DEVICE}
    assert close(gpu.inference(TOKENS, ref_wav=CLIP, ref_sr=RATE)[0], expected, WAVE)
    assert close(gpu.inference(TOKENS.to(DEVICE), ref_dict=ref)[0], expected, WAVE)
    assert close(gpu.inference(TOKENS, ref_dict=stored)[0], expected, WAVE)
    assert close(gpu(TOKENS, ref_wav=CLIP, ref_sr=RATE), cpu(TOKENS, ref_dict=stored), MEL)
    assert close(gpu(TOKENS, ref_dict=Voice.from_ref(ref)), cpu(TOKENS, ref_dict=stored), MEL)


def test_lengths_and_seeds_and_noise_may_lie_anywhere(gpu, cpu, stored):
    tokens, ref = torch.stack([TOKENS, TOKENS + 1]), gpu.embed_ref(CLIP, RATE)
    noise = torch.randn(2, 80, stored["prompt_feat"].shape[1] + 2 * len(TOKENS))
    expected = cpu(tokens, ref_dict=stored, speech_token_lens=[9, 5], finalize=True, noise=noise)
    for move in (torch.Tensor.cpu, lambda given: given.to(DEVICE)):
        given = {"speech_token_lens": move(torch.tensor([9, 5])), "noise": move(noise)}
        assert close(gpu(move(tokens), ref_dict=ref, finalize=True, **given), expected, MEL)
    seeded = cpu(TOKENS, ref_dict=stored, seed=3)
    assert close(gpu(TOKENS, ref_dict=ref, seed=torch.tensor(3).to(DEVICE)), seeded, MEL)


def test_voices_of_both_devices_cannot_share_a_batch(gpu, cpu, stored):
    made = gpu.embed_ref(CLIP, RATE)
    refs = [made, stored, Voice.from_ref(made), {name: value.numpy() for name, value in stored.items()}]
    rows = [random_tokens(count, seed=count) for count in (5, 70, 2, 31)]
    splitting = Splitting(max_tokens=48)
    expected = cpu.synthesize(rows, [stored] * 4, splitting=splitting)
    waves = gpu.synthesize([rows[0].to(DEVICE), *rows[1:]], refs, splitting=splitting)
    assert all(close(wave, whole, WAVE) for wave, whole in zip(waves, expected, strict=True))


def test_tokens_of_a_gpu_cannot_be_streamed_in_lists(gpu, cpu, stored):
    expected = torch.cat(list(cpu.stream(TOKENS, ref_dict=stored, chunk_tokens=4)))
    ref, there = gpu.embed_ref(CLIP, RATE), TOKENS.to(DEVICE)
    for tokens in (TOKENS.tolist(), there, list(there), [list(there)], [tuple(there[:2]), there[2:5], *TOKENS[5:]]):
        waves = gpu.stream(tokens, ref_dict=ref, chunk_tokens=4)
        assert close(torch.cat(list(waves)), expected, WAVE)
    assert close(torch.cat(list(gpu.stream(there, ref_wav=CLIP, ref_sr=RATE, chunk_tokens=4))), expected, WAVE)
    pushed = Stream(gpu.synthesis, ref, chunk_tokens=4)
    waves = [*pushed.push(list(there[:6])), *pushed.push([*there[6:8], 7]), *pushed.finish()]
    assert sum(len(on_device(wave)) for wave in waves) == 9 * 960


def test_rows_of_tokens_in_lists_are_the_cpu_s_alone(gpu, cpu, stored):
    there = torch.stack([TOKENS, TOKENS + 1]).to(DEVICE)
    expected = cpu(torch.stack([TOKENS, TOKENS + 1]), ref_dict=stored)
    assert close(gpu(list(there), ref_dict=stored), expected, MEL)
    assert close(
        gpu([list(row) for row in there], ref_dict=stored, speech_token_lens=[*there.new_full((2,), 9)]), expected, MEL
    )


def test_hearing_wants_its_clips_on_one_device(gpu, cpu):
    clips, rates = [CLIP, speech_like(0.5, 24_000)], [RATE, 24_000]
    expected = cpu.embed_refs(clips, rates)
    for given in (clips, [clip.to(DEVICE) for clip in clips], [CLIP.numpy(), clips[1].to(DEVICE)]):
        for ref, want in zip(gpu.embed_refs(given, rates), expected, strict=True):
            assert torch.equal(on_device(ref["prompt_token"]), want["prompt_token"])
            assert close(ref["prompt_feat"], want["prompt_feat"], MEL)
            assert close(ref["embedding"], want["embedding"], MEL)
        for tokens, want in zip(gpu.tokenize_clips(given, rates), cpu.tokenize_clips(clips, rates), strict=True):
            assert torch.equal(on_device(tokens), want)
    tokens, lengths = gpu.tokenize(CLIP.to(DEVICE), RATE)
    assert torch.equal(on_device(tokens), cpu.tokenize(CLIP, RATE)[0])
    assert on_device(lengths).tolist() == [25]


def test_a_vocoder_wants_the_cache_where_it_is_itself(gpu, cpu):
    mel = torch.randn(2, 80, 12, generator=torch.Generator().manual_seed(1))
    cache = torch.full((1, 1, 900), 0.1)
    expected, source = cpu.mel2wav.inference(mel, cache, lengths=[12, 7], seed=[1, 2])
    for given in (cache, cache.to(DEVICE)):
        made = gpu.mel2wav.inference(mel.to(DEVICE), given, lengths=[12, 7], seed=[1, 2])
        assert close(made[0], expected, WAVE)
        assert close(made[1], source, WAVE)
    assert close(gpu.mel2wav.decode(mel.to(DEVICE), source.to(DEVICE)), cpu.mel2wav.decode(mel, source), WAVE)
    assert close(gpu.mel2wav.source(gpu.mel2wav.f0(mel.to(DEVICE))), cpu.mel2wav.source(cpu.mel2wav.f0(mel)), WAVE)


def test_a_vocoder_s_stream_stays_where_it_is(gpu, cpu):
    mel = torch.randn(1, 80, 50, generator=torch.Generator().manual_seed(1))
    stream = VocoderStream(gpu.mel2wav)
    first, state = stream.step(stream.begin(7), mel.to(DEVICE)[:, :, :30])
    wave = torch.cat((first, stream.finish(state, mel[:, :, 30:])), dim=1)  # a mel from elsewhere is brought there
    assert close(wave, cpu.mel2wav.inference(mel, seed=7)[0], WAVE)


@pytest.mark.parametrize("format", ["huggingface", "chatterbox"])
def test_what_is_saved_from_a_gpu_is_another_model(gpu, cpu, tmp_path, format):
    assert (gpu.fingerprint(), gpu.voice_fingerprint()) == (cpu.fingerprint(), cpu.voice_fingerprint())
    if format == "chatterbox" and cpu.config.vocoder_harmonic_source != "sinegen":
        pytest.skip("that format cannot say this model")
    gpu.save_pretrained(tmp_path, format=format)
    assert S3GenModel.from_pretrained(tmp_path).fingerprint() == cpu.fingerprint()


def test_a_chosen_type_is_the_cpu_s_alone(gpu, cpu, stored):
    gpu.prepare(dtype="tf32")
    made = gpu.synthesize([TOKENS], [gpu.embed_ref(CLIP, RATE)])
    gpu.prepare()
    assert close(made[0], cpu.synthesize([TOKENS], [stored])[0], WAVE)
