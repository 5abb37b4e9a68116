"""Audio leaves before the last token has come, and nothing is lost, doubled or heard of another stream."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Iterator

import numpy as np
import pytest
import torch

from s3gen import S3GenConfig, S3GenModel, Solver, Voice, noise
from s3gen import stream as speech
from s3gen.constants import FRAMES_PER_TOKEN, LOOKAHEAD_TOKENS, MEL_BINS, SAMPLES_PER_TOKEN
from s3gen.flow import Flow
from s3gen.noise import Stream
from s3gen.stream_vocoder import VocoderStream
from tests.conftest import random_tokens, relative_error, speech_like
from tests.s3gen.joints import A_JOINT, NO_JOINT, SLIPS, joints
from tests.s3gen.voiced import voiced

ROUNDING = 1e-4  # of the vocoder's pieces over one mel, float32
TOKENS = 101


@pytest.fixture(scope="module")
def model(tiny_model, ref) -> S3GenModel:
    return voiced(tiny_model, tiny_model(random_tokens(TOKENS, 1), ref_dict=ref, finalize=True))


@pytest.fixture(scope="module")
def ref(voices) -> dict[str, torch.Tensor]:
    return voices[0].to_ref()


class Counted:
    """Tokens one by one, and how many of them were read."""

    def __init__(self, tokens: Iterable[int]) -> None:
        self.tokens, self.read = tokens, 0

    def __iter__(self) -> Iterator[int]:
        for token in self.tokens:
            self.read += 1
            yield int(token)


def spoken(model: S3GenModel, tokens, ref, **choices) -> torch.Tensor:
    return torch.cat(list(model.stream(tokens, ref, n_cfm_timesteps=1, **choices)))


@pytest.mark.parametrize(("chunk", "left"), [(1, 0.4), (7, 1.0), (25, 4.0)])
def test_a_stream_is_not_an_utterance_behind_and_no_sample_short(model, ref, chunk, left):
    tokens, waves = Counted(random_tokens(TOKENS, 1)), []
    for wave in model.stream(tokens, ref, chunk_tokens=chunk, left_seconds=left, n_cfm_timesteps=1):
        waves.append(wave)
        assert len(wave) > 0
        if len(waves) * chunk + LOOKAHEAD_TOKENS <= TOKENS:
            assert tokens.read == len(waves) * chunk + LOOKAHEAD_TOKENS  # and not one further ahead
    whole = torch.cat(waves)
    assert whole.shape == (TOKENS * SAMPLES_PER_TOKEN,) == (96_960,)
    assert whole.dtype == torch.float32
    assert bool(torch.isfinite(whole).all())


@pytest.fixture
def mels(monkeypatch) -> list[torch.Tensor]:
    """What the vocoder is given, chunk by chunk."""
    given, join = [], VocoderStream._joined

    def noted(stream, state, mel):
        given.append(mel)
        return join(stream, state, mel)

    monkeypatch.setattr(VocoderStream, "_joined", noted)
    return given


@pytest.mark.parametrize(("chunk", "left"), [(12, 0.4), (25, 4.0)])
def test_a_joint_is_heard(model, ref, mels, chunk, left):
    """The mels of chunks may differ from those of the whole; the wave of these mels has nothing at their borders."""
    waves = in_chunks(model, ref, chunk, left)
    whole, _ = model.mel2wav.inference(torch.cat(mels, dim=2), seed=5)
    assert joints(waves, whole) < NO_JOINT


@pytest.mark.parametrize("slip", SLIPS.values(), ids=SLIPS)
def test_the_joints_of_a_stream_that_slips_pass_for_none(model, ref, mels, monkeypatch, slip):
    slip(monkeypatch)
    waves = in_chunks(model, ref, 12, 0.4)
    whole, _ = model.mel2wav.inference(torch.cat(mels, dim=2), seed=5)
    assert joints(waves, whole) > A_JOINT


def in_chunks(model: S3GenModel, ref, chunk: int, left: float) -> list[torch.Tensor]:
    choices = {"chunk_tokens": chunk, "left_seconds": left, "seed": 5, "n_cfm_timesteps": 1, "start_fade": False}
    return [wave[None] for wave in model.stream(random_tokens(TOKENS, 1), ref, **choices)]


@pytest.mark.parametrize("chunk", [40, 1000])
def test_one_chunk_is_the_whole_utterance(model, ref, chunk):
    tokens = random_tokens(40, 2)
    (wave,) = model.stream(tokens, ref, chunk_tokens=chunk, seed=7, n_cfm_timesteps=2)
    (whole,) = model.synthesize([tokens], [ref], [7], n_cfm_timesteps=2)
    assert relative_error(wave, whole) < ROUNDING


def test_each_chunk_is_what_the_model_makes_of_all_that_came_before(model, ref):
    """With a left context as long as the utterance: the plain way, the whole of it anew for each chunk."""
    tokens, chunk = random_tokens(40, 3), 12
    vocoder = VocoderStream(model.mel2wav)
    state, waves = vocoder.begin(9), []
    for end in (12, 24, 36):
        heard = tokens[: end + LOOKAHEAD_TOKENS]
        mel = model(heard, ref_dict=ref, seed=9, n_cfm_timesteps=1)[:, :, FRAMES_PER_TOKEN * (end - chunk) :]
        wave, state = vocoder.step(state, mel, least=1)
        waves.append(wave)
    mel = model(tokens, ref_dict=ref, seed=9, n_cfm_timesteps=1, finalize=True)[:, :, FRAMES_PER_TOKEN * 36 :]
    plain = torch.cat([*waves, vocoder.finish(state, mel)], dim=1)[0]
    streamed = spoken(model, tokens, ref, seed=9, chunk_tokens=chunk, left_seconds=10.0, start_fade=False)
    assert relative_error(streamed, plain) < ROUNDING


@pytest.fixture
def solved(monkeypatch) -> list[list[torch.Tensor]]:
    """The noise of every row that the flow is asked for."""
    asked, solve = [], Flow.solve

    def noted(flow, mu, prompts, embedding, noise, solver):
        asked.append(noise)
        return solve(flow, mu, prompts, embedding, noise, solver)

    monkeypatch.setattr(Flow, "solve", noted)
    return asked


def test_a_chunk_has_the_noise_of_its_own_frames(model, ref, solved):
    """And not that of the utterance's first frames again, when the beginning has left the context."""
    spoken(model, random_tokens(40, 3), ref, seed=4, chunk_tokens=10, left_seconds=5 / 25)
    prompt, starts = ref["prompt_feat"].shape[1], (0, 5, 15, 25)
    whole = noise.normal([4], Stream.FLOW, prompt + 80, MEL_BINS, device=torch.device("cpu"))[0]
    assert len(solved) == len(starts)
    for (drawn,), start in zip(solved, starts, strict=True):
        own = whole[prompt + FRAMES_PER_TOKEN * start :]
        assert torch.equal(drawn, torch.cat((whole[:prompt], own))[: len(drawn)])


def test_the_second_minute_costs_no_more_than_the_first(model, ref, solved):
    stream = open_stream(model, ref, chunk_tokens=10, left_seconds=1.0)
    sizes = []
    for _ in range(8):
        for _ in stream.push(random_tokens(10, 1)):
            state = stream.state
            sizes.append((len(state.tokens), state.vocoder.mel.shape[2], state.vocoder.source.shape[2]))
    frames = [len(row) for (row,) in solved]
    assert frames[3:] == [ref["prompt_feat"].shape[1] + FRAMES_PER_TOKEN * (25 + 10)] * (len(frames) - 3)
    assert sizes[4:] == [sizes[4]] * (len(sizes) - 4)
    assert len(sizes) == 7


def open_stream(model: S3GenModel, ref, **choices) -> speech.Stream:
    return speech.Stream(model.synthesis, Voice.from_ref(ref), solver=Solver(steps=1), **choices)


def test_streams_do_not_hear_each_other(model, voices):
    """Two at once on one model, in turns, with other voices, seeds and chunks; and nothing of the model changes."""
    kinds = [{"seed": 1, "chunk_tokens": 9}, {"seed": 2, "chunk_tokens": 6, "left_seconds": 0.5}]
    rows, refs = [random_tokens(30, 5), random_tokens(30, 6)], [voice.to_ref() for voice in voices[:2]]
    apart = [spoken(model, rows[i].tolist(), refs[i], **kinds[i]) for i in range(2)]
    before = [dict(vars(module)) for module in model.modules()]
    streams = [open_stream(model, refs[i], **kinds[i]) for i in range(2)]
    waves = [[], []]
    for tokens in zip(*rows, strict=True):
        for i in range(2):
            waves[i] += streams[i].push(int(tokens[i]))
    for i in (1, 0):
        assert torch.equal(torch.cat([*waves[i], *streams[i].finish()]), apart[i])
    for module, attributes in zip(model.modules(), before, strict=True):
        assert vars(module).keys() == attributes.keys()
        assert all(vars(module)[name] is value for name, value in attributes.items())


PORTIONS = {
    "integers": lambda row: row.tolist(),
    "numpy integers": lambda row: row.numpy(),
    "a tensor": lambda row: row,
    "a batch of one": lambda row: row[None],
    "lists": lambda row: [row[:1].tolist(), [], row[1:24].tolist(), row[24:].tolist()],
    "arrays": lambda row: iter([row[:20].numpy().astype(np.uint16), row[20:].numpy()]),
    "all of it": lambda row: [row],
    "a mixture": lambda row: (int(row[0]), row[1], row[2:9].tolist(), np.int32(row[9]), row[10:]),
}


@pytest.fixture(scope="module")
def one_by_one(model, ref) -> torch.Tensor:
    return spoken(model, iter(random_tokens(30, 7).tolist()), ref, chunk_tokens=12)


@pytest.mark.parametrize("portion", PORTIONS.values(), ids=PORTIONS)
def test_how_tokens_arrive_does_not_matter(model, ref, one_by_one, portion):
    tokens = random_tokens(30, 7)
    waves = list(model.stream(portion(tokens), ref, chunk_tokens=12, n_cfm_timesteps=1))
    assert len(waves) == 3
    assert torch.equal(torch.cat(waves), one_by_one)


@pytest.mark.parametrize(
    ("bad", "shown"),
    [
        (6561, "6561 .*; a language model's start and stop tokens are to be left out"),
        (-1, "-1"),
        (3.0, "float"),
        (True, "bool"),
        ([5, 7000], "7000 at position 1"),
        (torch.tensor([[1, 2], [3, 4]]), r"\(2, 2\)"),
        (np.float32(2), "float32"),
        ("7", "integers"),
        ("", "integers, not str"),
        (b"abcd", "integers, not bytes"),
        ({}, "integers, not dict"),
        (set(), "integers, not set"),
        (None, "integers"),
    ],
)
def test_a_bad_token_spoils_none_of_those_before(model, ref, bad, shown):
    good = random_tokens(15, 8).tolist()
    stream = open_stream(model, ref, chunk_tokens=16)
    stream.push(good)
    with pytest.raises(ValueError, match=f"after 15 tokens.*{shown}"):
        stream.push(bad)
    assert stream.state.tokens.tolist() == good


def test_what_was_said_before_a_bad_token_has_left_already(model, ref):
    waves = model.stream([*random_tokens(20, 8).tolist(), 6562], ref, chunk_tokens=8, n_cfm_timesteps=1)
    assert len(next(waves)) > 0
    assert len(next(waves)) > 0
    with pytest.raises(ValueError, match="after 20 tokens"):
        next(waves)


def test_a_stream_goes_on_after_a_bad_token(model, ref, one_by_one):
    tokens = random_tokens(30, 7)
    stream = open_stream(model, ref, chunk_tokens=12)
    waves = list(stream.push(tokens[:20]))
    with pytest.raises(ValueError, match="after 20 tokens"):
        stream.push([3, 9_999])
    assert torch.equal(torch.cat([*waves, *stream.push(tokens[20:]), *stream.finish()]), one_by_one)


def test_waves_that_nobody_asked_for_come_later(model, ref, one_by_one):
    tokens = random_tokens(30, 7)
    stream = open_stream(model, ref, chunk_tokens=12)
    stream.push(tokens[:20])
    assert stream.state.received == 20
    first = next(stream.push(tokens[20:]))
    assert torch.equal(torch.cat([first, *stream.finish()]), one_by_one)


def test_a_stream_ends_once(model, ref):
    stream = open_stream(model, ref)
    with pytest.raises(ValueError, match="empty"):
        stream.finish()
    list(stream.push([1, 2]))
    assert [len(wave) for wave in stream.finish()] == [2 * SAMPLES_PER_TOKEN]
    for again in (lambda: stream.push(3), stream.finish):
        with pytest.raises(ValueError, match="has ended"):
            again()
    with pytest.raises(ValueError, match="empty"):
        list(model.stream([], ref))


@pytest.mark.parametrize(
    ("choices", "shown"),
    [
        ({"chunk_tokens": 0}, "chunk_tokens is 0"),
        ({"chunk_tokens": 2.0}, "chunk_tokens is 2.0"),
        ({"left_seconds": -1}, "left_seconds is -1"),
        ({"left_seconds": math.inf}, "left_seconds is inf"),
        ({"left_seconds": "4"}, "left_seconds is '4'"),
        ({"seed": 1.5}, "seed"),
        ({"n_cfm_timesteps": 0}, "n_cfm_timesteps is 0"),
        ({"ref_dict": None}, "exactly one of ref_wav"),
        ({"tokens": torch.zeros(2, 5, dtype=torch.int64)}, r"\(2, 5\)"),
        ({"tokens": None}, "iterable of integers, not NoneType"),
        ({"tokens": 5}, "iterable of integers, not int"),
        ({"tokens": torch.tensor(5)}, "iterable of integers, not Tensor"),
        ({"tokens": b"abcd"}, "iterable of integers, not bytes"),
        ({"tokens": {1: 2}}, "iterable of integers, not dict"),
    ],
)
def test_a_mistake_shows_before_the_first_token_is_read(model, ref, choices, shown):
    tokens = Counted(range(5))
    with pytest.raises(ValueError, match=shown):
        model.stream(**{"tokens": tokens, "ref_dict": ref, **choices})
    assert tokens.read == 0


@pytest.mark.parametrize(
    ("choices", "shown"),
    [
        ({"solver": "heun"}, "solver is 'heun', but must be an s3gen.Solver"),
        ({"solver": Solver(method="heun")}, "mean-flow model"),
        ({"voice": 5}, "a Voice or what embed_ref returned, not int"),
        ({"voice": {}}, "the reference lacks"),
    ],
)
def test_a_mistake_of_a_pushed_stream_shows_when_its_first_wave_is_due(ref, choices, shown):
    model = S3GenModel(dataclasses.replace(S3GenConfig.tiny(), meanflow=True))
    with pytest.raises(ValueError, match=shown):
        speech.Stream(model.synthesis, **{"voice": ref, **choices})


def test_a_voice_is_taken_by_one_call_as_a_dictionary_only(model, ref):
    tokens, voice = random_tokens(9, 1), Voice.from_ref(ref)
    assert torch.equal(spoken(model, tokens, voice), spoken(model, tokens, ref))
    pair = torch.stack((tokens, tokens))
    mels = [model(pair, ref_dict=each, n_cfm_timesteps=1) for each in (voice, ref)]
    assert torch.equal(*mels)


def test_two_voices_for_one_row_are_refused_with_the_choice_that_there_is(model, ref):
    two = {name: torch.cat((value, value)) for name, value in ref.items()}
    with pytest.raises(ValueError, match=r"2 voices for 1 token row\(s\); give 1$"):
        model.stream([1], two)


def test_numpys_integers_are_refused_where_seeds_are_taken(model, ref):
    tokens = random_tokens(9, 1)
    plain = spoken(model, tokens, ref, chunk_tokens=4)
    choices = {"chunk_tokens": np.int64(4), "n_cfm_timesteps": np.int32(1)}
    assert torch.equal(torch.cat(list(model.stream(tokens, ref, **choices))), plain)


def test_the_start_fades_in_over_all_the_pieces_that_it_meets(model, ref):
    tokens = random_tokens(6, 9)
    plain, faded = (
        spoken(model, tokens, ref, chunk_tokens=1, left_seconds=0, start_fade=fade) for fade in (False, True)
    )
    assert not faded[:480].any()
    assert torch.equal(faded[:960], plain[:960] * model.start_fade)
    assert torch.equal(faded[960:], plain[960:])


def test_a_reference_of_audio_and_a_solver_are_those_of_synthesis(model):
    tokens, wav, solver = random_tokens(12, 1), speech_like(1.0, 24_000), Solver(method="heun", steps=1, guidance=0.0)
    (wave,) = model.stream(tokens, ref_wav=wav, ref_sr=24_000, solver=solver)
    (whole,) = model.synthesize([tokens], [model.embed_ref(wav, 24_000)], solver=solver)
    assert relative_error(wave, whole) < ROUNDING


def test_cosyvoices_way_of_looking_ahead_streams_too(ref):
    """Its last 3 tokens are read by a convolution alone, and its source looks a frame further."""
    config = dataclasses.replace(S3GenConfig.tiny(), encode_lookahead=False, vocoder_harmonic_source="sinegen2")
    model, tokens = S3GenModel(config), random_tokens(30, 1)
    assert len(spoken(model, tokens, ref, chunk_tokens=12)) == 30 * SAMPLES_PER_TOKEN
    (whole,) = model.synthesize([tokens], [ref], n_cfm_timesteps=1)
    assert relative_error(spoken(model, tokens, ref, chunk_tokens=30), whole) < ROUNDING


def test_a_stream_waits_for_no_gpu(voices):
    """On torch's meta device reading a value fails, and a wait is a read."""
    model = S3GenModel.from_pretrained("random:tiny").to("meta")
    waves = list(model.stream(random_tokens(12, 1), voices[0].to_ref(), chunk_tokens=5, n_cfm_timesteps=1))
    assert sum(len(wave) for wave in waves) == 12 * SAMPLES_PER_TOKEN
    assert {(wave.device.type, wave.dtype) for wave in waves} == {("meta", torch.float32)}


def test_the_published_road_of_a_stream_leads_on(model, ref):
    """A mel that is held back, and the source of what was heard in the vocoder's cache."""
    tokens = random_tokens(20, 1)
    first = model(tokens[:15], ref_dict=ref, n_cfm_timesteps=1)
    wave, source = model.mel2wav.inference(speech_feat=first)
    assert wave.shape[1] == (15 - LOOKAHEAD_TOKENS) * SAMPLES_PER_TOKEN
    whole = model(tokens, ref_dict=ref, finalize=True, n_cfm_timesteps=1)
    longer, same = model.mel2wav.inference(speech_feat=whole, cache_source=source)
    assert longer.shape[1] == 20 * SAMPLES_PER_TOKEN
    assert torch.equal(same[..., : source.shape[2]], source)
