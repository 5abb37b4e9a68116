"""Every part at full size against what the reference made of the same inputs and weights (see `parity`).

The weights follow from their published names, so the goldens hold inputs and outputs only.
"""

from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from s3gen import S3GenConfig, S3GenModel
from s3gen.audio import speaker_features
from s3gen.checkpoint import published_shapes
from s3gen.weights import random_weights
from tests.conftest import relative_error

GOLDEN = Path(__file__).parent.parent / "golden"
# Float32 rounding through all layers is one to five millionths; a guidance of 0.701 for 0.7 makes 5e-4.
FIDELITY = 1e-5
SOURCE_FIDELITY = 1e-3  # the reference sums the phase in float32, this package in float64
TIE = 1e-5  # how near a number may be to the edge between two digits of a token for either digit to be right
MAX_BYTES = 100_000


class Golden:
    """Inputs and outputs of one call of the reference."""

    def __init__(self, name):
        with safe_open(GOLDEN / f"{name}.safetensors", framework="pt") as file:
            self.options = file.metadata()
            tensors = {key: widen(file.get_tensor(key)) for key in file.keys()}  # noqa: SIM118
        self.given = {key.removeprefix("in."): value for key, value in tensors.items() if key.startswith("in.")}
        self.expected = {key.removeprefix("out."): value for key, value in tensors.items() if key.startswith("out.")}


def widen(tensor):
    if tensor.dtype == torch.int16:
        return tensor.float() / 32768
    return tensor.float() if tensor.dtype == torch.float16 else tensor


@pytest.fixture(scope="module")
def meanflow_model(full_model):
    """The full model with the one weight more that mean-flow has; all others are shared."""
    with torch.device("meta"):
        model = S3GenModel(S3GenConfig(meanflow=True))
    name = "flow.decoder.estimator.time_embed_mixer.weight"
    mixer = random_weights({name: published_shapes(model)[name]})[name]
    state = {**full_model.state_dict(), "flow.estimator.time_embed_mixer.weight": mixer}
    model.load_state_dict(state, assign=True)
    return model.requires_grad_(False)


@pytest.fixture(scope="module")
def cosyvoice_model(full_model):
    """The full model as CosyVoice2 has it: its weights have the same names and sizes."""
    with torch.device("meta"):
        model = S3GenModel(S3GenConfig(vocoder_harmonic_source="sinegen2", encode_lookahead=False))
    model.load_state_dict(full_model.state_dict(), assign=True)
    return model.requires_grad_(False)


def model_of(request, name):
    fixtures = {"meanflow": "meanflow_model", "cosyvoice": "cosyvoice_model"}
    return request.getfixturevalue(fixtures.get(name.partition("_")[0], "full_model"))


def assert_tokens(found, expected, margin):
    assert found.shape == expected.shape
    assert not ((found != expected) & (margin > TIE)).any()


def test_the_goldens_are_small_enough_to_stay_in_the_repository():
    sizes = {path.name: path.stat().st_size for path in GOLDEN.iterdir()}
    assert len(sizes) == 18
    assert max(sizes.values()) <= MAX_BYTES


def test_the_tokenizer_hears_other_tokens_than_the_reference(full_model):
    golden = Golden("tokenizer")
    assert relative_error(full_model.tokenizer.mel(golden.given["wav"]), golden.expected["mel"]) < FIDELITY
    tokens, _ = full_model.tokenizer([golden.given["wav"]])
    assert golden.expected["tokens"].unique().numel() > 5, "the golden must tell sounds apart"
    assert_tokens(tokens[0], golden.expected["tokens"], golden.expected["margin"])


def test_the_speaker_vector_is_another_voice(full_model):
    golden = Golden("speaker")
    features = speaker_features(golden.given["wav"], full_model.config.speaker.mels)
    assert relative_error(features, golden.expected["features"]) < FIDELITY
    embedding = full_model.speaker_encoder([golden.given["wav"]])[0]
    assert relative_error(embedding, golden.expected["embedding"]) < FIDELITY


def test_the_prompt_mel_has_other_filters_or_edges(full_model):
    golden = Golden("prompt_mel")
    assert relative_error(full_model.prompt_mel(golden.given["wav"]), golden.expected["mel"]) < FIDELITY


def test_a_voice_at_another_rate_is_resampled_differently(full_model):
    golden = Golden("voice")
    voice = full_model.embed_ref(golden.given["wav"], int(golden.options["rate"]))
    frames = voice["prompt_feat"].shape[1]
    assert frames == 2 * golden.expected["prompt_token"].shape[1]
    assert golden.expected["prompt_feat"].shape[1] == frames + 1, "the reference keeps an odd frame for this length"
    assert_tokens(voice["prompt_token"][0], golden.expected["prompt_token"][0], golden.expected["margin"])
    assert relative_error(voice["prompt_feat"], golden.expected["prompt_feat"][:, :frames]) < FIDELITY
    assert relative_error(voice["embedding"], golden.expected["embedding"]) < FIDELITY


def test_the_encoder_departs_from_the_reference(full_model):
    golden = Golden("encoder")
    tokens = golden.given["tokens"]
    mu = full_model.flow.encode(tokens[None], [len(tokens)])[0]
    assert relative_error(mu, golden.expected["mu"]) < FIDELITY


@pytest.mark.parametrize("name", ["estimator", "meanflow_estimator"])
def test_the_estimator_departs_from_the_reference(request, name):
    golden = Golden(name)
    model = model_of(request, name)
    estimator, given = model.flow.estimator, golden.given
    time = estimator.embed_time(given["time"][0], given.get("end", given["time"])[0])
    condition = torch.cat((given["mu"], given["speaker"].expand_as(given["mu"]), given["prompt"]), dim=1)
    velocity = estimator(given["x"][None], condition[None], time, None)[0]
    assert relative_error(velocity, golden.expected["velocity"]) < FIDELITY


@pytest.mark.parametrize("name", ["mel", "mel_held_back", "meanflow_mel", "cosyvoice_mel", "cosyvoice_mel_held_back"])
def test_the_solver_departs_from_the_reference(request, name):
    golden = Golden(name)
    model = model_of(request, name)
    finalize = golden.options["finalize"] == "True"
    ref = {part: golden.given[part][None] for part in ("prompt_token", "prompt_feat", "embedding")}
    mel = model(
        golden.given["tokens"],
        ref_dict=ref,
        finalize=finalize,
        n_cfm_timesteps=int(golden.options["steps"]),
        noise=golden.given["noise"][None] if finalize else golden.given["noise"][None, :, :-6],
    )
    assert relative_error(mel[0], golden.expected["mel"]) < FIDELITY


def test_the_pitch_departs_from_the_reference(full_model):
    golden = Golden("f0")
    f0 = full_model.mel2wav.f0(golden.given["mel"][None])[0]
    assert golden.expected["f0"].min() > 30 and golden.expected["f0"].max() < 300, "the golden must be voiced"  # noqa: PT018
    assert relative_error(f0, golden.expected["f0"]) < FIDELITY


def test_the_source_departs_from_the_reference_where_voice_comes_and_goes(full_model):
    golden = Golden("source")
    given = golden.given
    source = full_model.mel2wav.source(given["f0"][None], phase=given["phase"][None], noise=given["noise"][None])
    assert relative_error(source[0, 0], golden.expected["source"]) < SOURCE_FIDELITY


def test_the_wave_departs_from_the_reference(full_model):
    golden = Golden("wave")
    wave = full_model.mel2wav.decode(golden.given["mel"][None], golden.given["source"][None, None])[0]
    assert golden.expected["wave"].abs().max() < 0.99, "the golden must not sit in the limiter"
    assert relative_error(wave, golden.expected["wave"]) < FIDELITY


def test_the_vocoders_stages_do_not_fit_together_as_in_the_reference(full_model):
    golden = Golden("vocoder")
    vocoder, given = full_model.mel2wav, golden.given
    f0 = vocoder.f0(given["mel"][None])
    source = vocoder.source(f0, phase=given["phase"][None], noise=given["noise"][None])
    assert relative_error(f0[0], golden.expected["f0"]) < FIDELITY
    assert relative_error(source[0, 0], golden.expected["source"]) < SOURCE_FIDELITY
    wave = vocoder.decode(given["mel"][None], golden.expected["source"][None, None])[0]
    assert relative_error(wave, golden.expected["wave"]) < FIDELITY


def test_cosyvoices_source_departs_from_the_reference_where_voice_comes_and_goes(cosyvoice_model):
    golden = Golden("cosyvoice_source")
    source = cosyvoice_model.mel2wav.source(golden.given["f0"][None], noise=golden.given["noise"][None])
    assert relative_error(source[0, 0], golden.expected["source"]) < SOURCE_FIDELITY


def test_cosyvoices_vocoder_departs_from_the_reference(cosyvoice_model):
    golden = Golden("cosyvoice_vocoder")
    vocoder, mel = cosyvoice_model.mel2wav, golden.given["mel"][None]
    f0 = vocoder.f0(mel)
    source = vocoder.source(golden.expected["f0"][None], noise=golden.given["noise"][None])
    assert relative_error(f0[0], golden.expected["f0"]) < FIDELITY
    # The reference's phase in float64, which is what its float32 is rounded from.
    assert relative_error(source[0, 0], golden.expected["exact_source"]) < FIDELITY
    assert relative_error(source[0, 0], golden.expected["source"]) < SOURCE_FIDELITY
    wave = vocoder.decode(mel, golden.expected["source"][None, None])[0]
    assert relative_error(wave, golden.expected["wave"]) < FIDELITY
