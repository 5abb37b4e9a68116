"""The published interface: shapes, lengths, seeds, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from s3gen import HiFTNetConfig, HiFTNetModel, S3GenConfig, S3GenModel, Stream
from tests.conftest import random_tokens, relative_error, speech_like


@pytest.fixture(scope="module")
def ref(tiny_model):
    return tiny_model.embed_ref(speech_like(1.0, 16_000), 16_000)


@pytest.mark.parametrize("count", [1, 2, 3, 4, 50, 101])
def test_one_token_is_two_frames_is_960_samples(tiny_model, ref, count):
    tokens = random_tokens(count, seed=count)
    assert tiny_model(tokens, ref_dict=ref, finalize=True).shape == (1, 80, 2 * count)
    wave, source = tiny_model.inference(tokens, ref_dict=ref)
    assert wave.shape == (1, 960 * count)
    assert source.shape == (1, 1, 960 * count)
    assert torch.isfinite(wave).all()
    held = max(0, count - 3)
    assert tiny_model(tokens, ref_dict=ref).shape == (1, 80, 2 * held)
    assert tiny_model.inference(tokens, ref_dict=ref, finalize=False)[0].shape == (1, 960 * held)


@pytest.mark.parametrize("rate", [8_000, 16_000, 24_000, 44_100])
@pytest.mark.parametrize("samples", [0, 1, 333])
def test_a_reference_of_any_length_has_two_frames_per_token(tiny_model, rate, samples):
    wav = speech_like(1.0, rate)[: rate - samples]
    ref = tiny_model.embed_ref(wav, rate)
    assert ref["prompt_feat"].shape[1] == 2 * ref["prompt_token"].shape[1]
    assert ref["prompt_token"].dtype == torch.int64
    assert not any(value.requires_grad or value.is_inference() for value in ref.values())
    assert tiny_model.inference(random_tokens(3, 0), ref_dict=ref)[0].shape == (1, 2880)


def test_the_two_stages_are_the_whole(tiny_model, ref):
    tokens = random_tokens(20, seed=1)[None]
    mel = tiny_model(tokens, ref_dict=ref, finalize=True, seed=7)
    wave, source = tiny_model.mel2wav.inference(mel, cache_source=torch.zeros(1, 1, 0), seed=7)
    whole, whole_source = tiny_model.inference(tokens, ref_dict=ref, seed=7, start_fade=False)
    assert torch.equal(whole, wave)
    assert torch.equal(whole_source, source)
    (synthesised,) = tiny_model.synthesize([tokens[0]], [ref], [7], start_fade=False)
    assert torch.equal(synthesised, wave[0])


def test_the_vocoder_is_its_three_stages(tiny_model):
    mel = torch.randn(2, 80, 9, generator=torch.Generator().manual_seed(1))
    vocoder = tiny_model.mel2wav
    source = vocoder.source(vocoder.f0(mel), seed=[4, 5])
    wave, same = vocoder.inference(mel, seed=[4, 5])
    assert torch.equal(source, same)
    assert torch.equal(vocoder.decode(mel, source), wave)


def test_the_start_fades_in_over_40_ms_and_never_in_the_vocoder(tiny_model, ref):
    tokens = random_tokens(5, seed=1)
    plain = tiny_model.inference(tokens, ref_dict=ref, start_fade=False)[0]
    faded = tiny_model.inference(tokens, ref_dict=ref)[0]
    assert not faded[:, :480].any()
    assert torch.equal(faded[:, 960:], plain[:, 960:])
    ramp = (np.cos(np.linspace(np.pi, 0, 480)) + 1) / 2
    assert np.allclose(faded[0, 480:960], plain[0, 480:960].numpy() * ramp, atol=1e-6)


def test_seeds_make_the_noise_and_nothing_else_does(tiny_model, ref):
    tokens = random_tokens(8, seed=1)
    state = torch.get_rng_state()
    first = tiny_model.inference(tokens, ref_dict=ref, seed=3)[0]
    torch.manual_seed(99)
    assert torch.equal(tiny_model.inference(tokens, ref_dict=ref, seed=3)[0], first)
    assert relative_error(tiny_model.inference(tokens, ref_dict=ref, seed=4)[0], first) > 0.1
    assert torch.equal(
        tiny_model.inference(tokens, ref_dict=ref)[0], tiny_model.inference(tokens, ref_dict=ref, seed=0)[0]
    )
    torch.set_rng_state(state)
    tiny_model.inference(tokens, ref_dict=ref, seed=3)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_batch_with_lengths_equals_its_rows(tiny_model, ref):
    tokens = torch.zeros(2, 12, dtype=torch.int64)
    tokens[0, :5], tokens[1] = random_tokens(5, 1), random_tokens(12, 2)
    mel = tiny_model(tokens, ref_dict=ref, finalize=True, speech_token_lens=torch.tensor([5, 12]), seed=[8, 9])
    assert mel.shape == (2, 80, 24)
    assert not mel[0, :, 10:].any()
    alone = tiny_model(tokens[:1, :5], ref_dict=ref, finalize=True, seed=8)
    assert relative_error(mel[:1, :, :10], alone) < 1e-5
    wave, _ = tiny_model.inference(tokens, ref_dict=ref, speech_token_lens=[5, 12], seed=[8, 9])
    assert not wave[0, 5 * 960 :].any()


def test_a_given_noise_is_used_as_it_is(tiny_model, ref):
    tokens = random_tokens(4, seed=1)
    frames = ref["prompt_feat"].shape[1] + 8
    noise = torch.randn(1, 80, frames)
    first = tiny_model(tokens, ref_dict=ref, finalize=True, noise=noise)
    assert torch.equal(first, tiny_model(tokens, ref_dict=ref, finalize=True, noise=noise, seed=77))
    with pytest.raises(ValueError, match=str(frames)):
        tiny_model(tokens, ref_dict=ref, finalize=True, noise=noise[..., :-1])


def test_a_given_phase_and_noise_make_the_source(tiny_model):
    f0 = torch.full((1, 4), 200.0)
    phase, noise = torch.zeros(1, 9, 1), torch.zeros(1, 9, 1920)
    source = tiny_model.mel2wav.source(f0, phase=phase, noise=noise)
    weight, bias = tiny_model.mel2wav.source.linear.weight[0], tiny_model.mel2wav.source.linear.bias
    time = torch.arange(1, 1921, dtype=torch.float64) / 24_000
    waves = torch.stack([0.1 * torch.sin(2 * torch.pi * 200 * k * time) for k in range(1, 10)])
    assert relative_error(source[0, 0], torch.tanh(weight.double() @ waves + bias.double())) < 1e-4
    with pytest.raises(ValueError, match="1920"):
        tiny_model.mel2wav.source(f0, phase=phase, noise=noise[..., 1:])


def test_an_unvoiced_frame_is_noise_alone(tiny_model):
    quiet = tiny_model.mel2wav.source(torch.zeros(1, 3), phase=torch.zeros(1, 9, 1), noise=torch.zeros(1, 9, 1440))
    assert torch.allclose(quiet, torch.tanh(tiny_model.mel2wav.source.linear.bias).expand_as(quiet))


def test_the_phase_does_not_drift_over_half_a_minute(tiny_model):
    """A float32 running sum would be a radian off by now."""
    f0 = 150 + 50 * torch.sin(torch.arange(1500) / 10.0)[None]
    source = tiny_model.mel2wav.source
    turns = source._turns(f0, 1500, source.begin([0], f0.device))[0][0, 8]
    exact = torch.cumsum(f0.double().repeat_interleave(480, dim=1)[0] * 9 / 24_000, 0)
    error = (turns.double() - exact + 0.5) % 1 - 0.5
    assert float(error.abs().max()) < 1e-4


def test_a_cached_source_replaces_the_beginning(tiny_model, ref):
    cache = torch.full((1, 1, 100), 0.5)
    _, source = tiny_model.inference(random_tokens(2, 1), ref_dict=ref, cache_source=cache)
    assert torch.equal(source[..., :100], cache)
    with pytest.raises(ValueError, match="5000"):
        tiny_model.inference(random_tokens(2, 1), ref_dict=ref, cache_source=torch.zeros(1, 1, 5000))


def test_references_of_numpy_and_of_a_batch(tiny_model, ref):
    tokens = torch.stack([random_tokens(6, 1), random_tokens(6, 2)])
    arrays = {name: value.numpy() for name, value in ref.items()}
    arrays["prompt_feat_len"] = None
    mel = tiny_model(tokens, ref_dict=ref, finalize=True)
    assert torch.equal(tiny_model(tokens, ref_dict=arrays, finalize=True), mel)
    both = tiny_model.embed_ref(torch.stack([speech_like(1.0, 16_000), speech_like(1.0, 16_000, seed=2)]), 16_000)
    assert relative_error(tiny_model(tokens, ref_dict=both, finalize=True)[:1], mel[:1]) < 1e-5
    with pytest.raises(ValueError, match="2 voices for 3"):
        tiny_model(torch.zeros(3, 4, dtype=torch.int64), ref_dict=both)


def test_tokenize_counts_tokens(tiny_model):
    tokens, lengths = tiny_model.tokenize(speech_like(2.0, 24_000).double().numpy(), np.int64(24_000))
    assert tokens.shape == (1, 50)
    assert lengths.tolist() == [50]
    assert 0 <= int(tokens.min()) <= int(tokens.max()) < 6561


def test_steps_default_to_the_models_own(ref):
    model = S3GenModel._random(S3GenConfig.from_dict({**S3GenConfig.tiny().to_dict(), "meanflow": True}))
    tokens = random_tokens(5, 1)
    two = model(tokens, ref_dict=ref, finalize=True, n_cfm_timesteps=2)
    assert torch.equal(model(tokens, ref_dict=ref, finalize=True), two)
    assert relative_error(model(tokens, ref_dict=ref, finalize=True, n_cfm_timesteps=4), two) > 1e-3


@pytest.mark.parametrize(
    ("call", "shown"),
    [
        (lambda m, r: m([1, 7000], ref_dict=r), "7000"),
        (lambda m, r: m([], ref_dict=r), "empty"),
        (lambda m, r: m([1.5], ref_dict=r), "integers"),
        (lambda m, r: m([1]), "exactly one"),
        (lambda m, r: m([1], ref_wav=torch.zeros(16000), ref_sr=16000, ref_dict=r), "exactly one"),
        (lambda m, r: m([1], ref_wav=torch.zeros(16000)), "ref_sr"),
        (lambda m, r: m([1], ref_dict=r, n_cfm_timesteps=0), "n_cfm_timesteps is 0"),
        (lambda m, r: m([1], ref_dict=r, seed=2**64), str(2**64)),
        (lambda m, r: m([1], ref_dict=r, seed=[1, 2]), "2 seeds"),
        (lambda m, r: m.embed_ref(torch.zeros(10), 16_000), "too short"),
        (lambda m, r: m.embed_ref(torch.full((16_000,), torch.nan), 16_000), "finite"),
        (lambda m, r: m.embed_ref(torch.zeros(16_000, dtype=torch.int16), 16_000), "int16"),
        (lambda m, r: m.embed_ref([0.0], 16_000), "list"),
        (lambda m, r: m.embed_ref(torch.zeros(16_000), 0), "0"),
        (lambda m, r: m.embed_ref(np.zeros((16_000, 2)), 16_000), r"\(samples, channels\).*ref_wav.mean\(1\)"),
        (lambda m, r: m.tokenize(torch.zeros(16_000, 1), 16_000), r"\(samples, channels\).*wav.mean\(1\)"),
        (lambda m, r: m([1], ref_wav=torch.zeros(2, 16_000), ref_sr=16_000), r"2 voices for 1 .*mean\(0\)"),
        (lambda m, r: m.synthesize([[1]], [], [0]), "0 references"),
        (lambda m, r: m.mel2wav.inference(torch.zeros(80, 4)), r"\(80, 4\)"),
        (lambda m, r: m.mel2wav.inference(torch.zeros(1, 80, 4), lengths=[5]), "5"),
    ],
)
def test_a_users_mistake_is_a_value_error_that_shows_it(tiny_model, ref, call, shown):
    with pytest.raises(ValueError, match=shown):
        call(tiny_model, ref)


@pytest.mark.parametrize(
    "call",
    [
        lambda m, r: m([1], ref_dict=r),
        lambda m, r: m.inference([1], ref_dict=r),
        lambda m, r: m.synthesize([[1]], [r]),
        lambda m, r: m.stream([1], ref_dict=r),
        lambda m, r: Stream(m.synthesis, r),
    ],
)
def test_a_voice_of_another_encoder_fails_in_the_flow(tiny_model, ref, call):
    with pytest.raises(ValueError, match=r"voice 0 has the shape \(512,\), but this model's have \(192,\)"):
        call(tiny_model, {**ref, "embedding": torch.ones(1, 512)})


def test_nothing_to_do_is_nothing(tiny_model):
    assert tiny_model.synthesize([], [], []) == []


def test_no_call_changes_the_model(tiny_model, ref):
    before = {name: value.clone() for name, value in tiny_model.state_dict().items()}
    attributes = {name: dict(vars(module)) for name, module in tiny_model.named_modules()}
    tiny_model.inference(random_tokens(5, 1), ref_dict=ref)
    assert all(torch.equal(before[name], value) for name, value in tiny_model.state_dict().items())
    assert {name: set(vars(module)) for name, module in tiny_model.named_modules()} == {
        name: set(values) for name, values in attributes.items()
    }


def test_a_small_published_configuration_gives_a_small_model(ref):
    config = S3GenConfig(encoder_num_blocks=1, decoder_num_mid_blocks=1, decoder_n_blocks=1, encoder_output_size=64,
                         tokenizer_layers=1)  # fmt: skip
    model = S3GenModel(config).eval()
    assert sum(weight.numel() for weight in model.flow.parameters()) < 15_000_000
    assert model.inference([5, 6], ref_dict=ref)[0].shape == (1, 1920)


def test_the_published_vocoder_alone():
    model = HiFTNetModel(HiFTNetConfig())
    assert model.inference(torch.randn(1, 80, 7))[0].shape == (1, 7 * 256)
