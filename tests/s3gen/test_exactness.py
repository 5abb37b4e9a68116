"""Ragged batches are exact: each part alone and in company, and each mask on its own.

In float64, where alone and together must agree to 1e-12; taking any one mask away must show.
"""

from __future__ import annotations

import pytest
import torch

from s3gen import Solver, ragged
from s3gen.constants import FRAMES_PER_TOKEN
from s3gen.synthesis import Utterance
from tests.conftest import random_tokens, relative_error

EXACT = 1e-12  # float64 rounding, amplified by the depth of the parts
LEAK = 1e-9  # what a missing mask must at least do to a row
LENGTHS = [14, 1, 6, 20]  # longest neither first nor alone; one row as short as can be


@pytest.fixture(autouse=True)
def _no_gradients():
    with torch.no_grad():
        yield


def garbage(shape: tuple[int, ...], seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def padded(rows: list[torch.Tensor], dim: int) -> torch.Tensor:
    """Rows side by side, with rubbish instead of zeros behind each."""
    longest = max(row.shape[dim] for row in rows)
    out = []
    for seed, row in enumerate(rows):
        rest = list(row.shape)
        rest[dim] = longest - row.shape[dim]
        out.append(torch.cat((row, 10 * garbage(tuple(rest), seed)), dim=dim))
    return torch.stack(out)


class WithoutMask:
    """`zero_padding` that leaves out its n-th masked call."""

    def __init__(self, skip: int | None) -> None:
        self.skip = skip
        self.calls = 0

    def __call__(self, x, mask):
        if mask is None:
            return x
        self.calls += 1
        return x if self.calls - 1 == self.skip else ragged.zero_padding(x, mask)


# --- the encoder ---------------------------------------------------------------------------------------------------


def encode(model, lengths):
    rows = [garbage((n, model.config.token_embed_dim), seed=n) for n in lengths]
    alone = [model.flow.encoder(row[None], [len(row)])[0] for row in rows]
    together = model.flow.encoder(padded(rows, 0), lengths)
    return alone, [out[: len(row) * FRAMES_PER_TOKEN] for out, row in zip(together, rows, strict=True)]


def test_the_encoder_alone_equals_in_a_batch(exact_model):
    for alone, together in zip(*encode(exact_model, LENGTHS), strict=True):
        assert relative_error(together, alone) < EXACT


def test_the_encoder_needs_its_zeroing(exact_model, monkeypatch):
    monkeypatch.setattr("s3gen.encoder.zero_padding", lambda x, mask: x)
    alone, together = encode(exact_model, LENGTHS)
    assert relative_error(together[0], alone[0]) > LEAK


@pytest.mark.parametrize("without", [0, 1])
def test_the_encoder_needs_its_key_masks_at_both_rates(exact_model, monkeypatch, without):
    from s3gen import encoder

    run, calls = encoder._run, []

    def unmasked_once(blocks, x, mask):
        calls.append(mask)
        return run(blocks, x, None if len(calls) - 1 == without else mask)

    rows = [garbage((n, exact_model.config.token_embed_dim), seed=n) for n in LENGTHS]
    alone = exact_model.flow.encoder(rows[0][None], [len(rows[0])])[0]
    monkeypatch.setattr(encoder, "_run", unmasked_once)
    together = exact_model.flow.encoder(padded(rows, 0), LENGTHS)[0, : len(alone)]
    assert len(calls) == 2
    assert relative_error(together, alone) > LEAK


# --- the estimator and its solver ----------------------------------------------------------------------------------


TWO_STEPS = Solver(steps=2)


def solver_rows(model, lengths):
    width = model.config.mel_bins
    frames = [n * FRAMES_PER_TOKEN for n in lengths]
    mu, noise = ([garbage((n, width), seed=10 * n + k) for n in frames] for k in range(2))
    prompts = [garbage((1 + n // 3, width), seed=10 * n + 2) for n in frames]
    return mu, prompts, garbage((len(frames), model.config.speaker_embed_dim)), noise


def solve(run, model, lengths, solver=TWO_STEPS):
    mu, prompts, embedding, noise = solver_rows(model, lengths)
    rows = [([mu[i]], [prompts[i]], embedding[i : i + 1], [noise[i]]) for i in range(len(mu))]
    return [run(*row, solver)[0] for row in rows], run(mu, prompts, embedding, noise, solver)


@pytest.mark.parametrize("which", ["solve", "solve_plain"])
def test_the_solver_alone_equals_in_a_batch(exact_model, which):
    for alone, together in zip(*solve(getattr(exact_model.flow, which), exact_model, LENGTHS), strict=True):
        assert relative_error(together, alone) < EXACT


def test_the_plain_solver_needs_its_key_mask(exact_model, monkeypatch):
    monkeypatch.setattr("s3gen.flow.length_mask", lambda lengths, device: None)
    alone, together = solve(exact_model.flow.solve_plain, exact_model, LENGTHS)
    assert relative_error(together[0], alone[0]) > LEAK


# --- the vocoder ---------------------------------------------------------------------------------------------------


def decode(model, lengths):
    """The vocoder with the source given, so that F0's rounding hides nothing."""
    vocoder = model.mel2wav
    mels = [garbage((80, n), seed=n) for n in lengths]
    sources = [garbage((1, n * vocoder.config.frame_samples), seed=100 + n).clamp(-1, 1) for n in lengths]
    alone = [vocoder.decode(mel[None], source[None])[0] for mel, source in zip(mels, sources, strict=True)]
    together = vocoder.decode(padded(mels, 1), padded(sources, 1), lengths)
    return alone, [out[: len(wave)] for out, wave in zip(together, alone, strict=True)]


def test_the_vocoder_alone_equals_in_a_batch(exact_model):
    for alone, together in zip(*decode(exact_model, LENGTHS), strict=True):
        assert relative_error(together, alone) < EXACT


def test_behind_a_short_row_there_is_silence(exact_model):
    lengths = [14, 1, 6]
    wave, source = exact_model.mel2wav.inference(padded([garbage((80, n)) for n in lengths], 1), lengths=lengths)
    for row, n in enumerate(lengths):
        end = n * exact_model.mel2wav.config.frame_samples
        assert not wave[row, end:].any()
        assert not source[row, 0, end:].any()


VOCODER_MASKS = 73  # mel, conv_pre, source spectrum, magnitude; per stage 3, and 5 in each of 4 residual blocks


def test_the_vocoder_has_as_many_masks_as_are_tested(exact_model, monkeypatch):
    counter = WithoutMask(None)
    monkeypatch.setattr("s3gen.vocoder.zero_padding", counter)
    decode(exact_model, LENGTHS[:2])
    assert counter.calls == VOCODER_MASKS


@pytest.mark.parametrize("skip", range(VOCODER_MASKS))
def test_the_vocoder_needs_each_of_its_masks(exact_model, monkeypatch, skip):
    monkeypatch.setattr("s3gen.vocoder.zero_padding", WithoutMask(skip))
    alone, together = decode(exact_model, [3, 5])
    assert relative_error(together[0], alone[0]) > LEAK


def test_the_source_must_reflect_at_each_rows_own_end(exact_model, monkeypatch):
    stft = exact_model.mel2wav.stft
    reflect = type(stft)._reflect
    monkeypatch.setattr(type(stft), "_reflect", lambda self, x, n, half: reflect(self, x, [x.shape[1]] * len(x), half))
    alone, together = decode(exact_model, [3, 5])
    assert relative_error(together[0], alone[0]) > LEAK


def test_the_envelope_must_end_with_each_row(exact_model, monkeypatch):
    stft = exact_model.mel2wav.stft
    inverse = type(stft).inverse
    monkeypatch.setattr(type(stft), "inverse", lambda self, spectrum, mask: inverse(self, spectrum, None))
    alone, together = decode(exact_model, [3, 5])
    assert relative_error(together[0], alone[0]) > LEAK


# --- F0 and source -------------------------------------------------------------------------------------------------


def test_f0_alone_equals_in_a_batch(exact_model):
    mels = [garbage((80, n), seed=n) for n in LENGTHS]
    together = exact_model.mel2wav.f0(padded(mels, 1), LENGTHS)
    for row, mel in enumerate(mels):
        alone = exact_model.mel2wav.f0(mel[None])[0]
        assert relative_error(together[row, : len(alone)], alone) < EXACT
        assert not together[row, len(alone) :].any()


@pytest.mark.parametrize("skip", range(5))
def test_f0_needs_each_of_its_masks(exact_model, monkeypatch, skip):
    mels = [garbage((80, n), seed=n) for n in (7, 9)]
    alone = exact_model.mel2wav.f0(mels[0][None])[0]
    monkeypatch.setattr("s3gen.f0.zero_padding", WithoutMask(skip))
    assert relative_error(exact_model.mel2wav.f0(padded(mels, 1), [7, 9])[0, :7], alone) > LEAK


def test_the_source_of_a_row_does_not_know_its_company(exact_model):
    f0 = 100 + 20 * garbage((3, 40)).abs()
    together = exact_model.mel2wav.source(f0, seed=[5, 6, 5])
    for row, seed in enumerate((5, 6, 5)):
        alone = exact_model.mel2wav.source(f0[row : row + 1, :25], seed=seed)
        assert relative_error(together[row : row + 1, :, : alone.shape[2]], alone) < EXACT


# --- the whole model -----------------------------------------------------------------------------------------------

MEL_TOLERANCE = 1e-5
WAVE_TOLERANCE = 1e-3  # F0's rounding is summed into the phase; grows with length beyond two seconds


def utterances(voices):
    tokens = [random_tokens(n, seed=n) for n in (9, 1, 30, 4, 17, 2, 12, 30)]
    refs = [voices[i % len(voices)] for i in range(len(tokens))]
    return tokens, refs, [3, 1, 4, 1, 5, 9, 2**63, -6]


@pytest.mark.parametrize("order", [[0, 1], list(range(8)), [7, 3, 5, 1, 6, 0, 2, 4]], ids=["in 2", "in 8", "permuted"])
def test_an_utterance_does_not_know_its_company(tiny_model, voices, order):
    tokens, refs, seeds = utterances(voices)
    together = tiny_model.synthesize([tokens[i] for i in order], [refs[i] for i in order], [seeds[i] for i in order])
    for wave, i in zip(together, order, strict=True):
        (alone,) = tiny_model.synthesize([tokens[i]], [refs[i]], [seeds[i]])
        assert wave.shape == (960 * len(tokens[i]),)
        assert relative_error(wave[960:], alone[960:]) < WAVE_TOLERANCE or len(wave) == 960


def test_the_mel_of_a_mixed_batch_agrees_to_rounding(tiny_model, voices):
    tokens, refs, seeds = utterances(voices)
    rows = [Utterance(*row) for row in zip(tokens, refs, seeds, strict=True)]
    together = tiny_model.synthesis.mels(rows, finalize=True, solver=Solver())
    for i, mel in enumerate(together):
        (alone,) = tiny_model.synthesis.mels(rows[i : i + 1], finalize=True, solver=Solver())
        assert relative_error(mel, alone) < MEL_TOLERANCE


def test_the_whole_model_is_exact_in_float64(exact_model, voices):
    tokens, refs, seeds = utterances(voices)
    together = exact_model.synthesize(tokens, refs, seeds, start_fade=False)
    for i, wave in enumerate(together):
        (alone,) = exact_model.synthesize([tokens[i]], [refs[i]], [seeds[i]], start_fade=False)
        # The phase multiplies the mel's last digits by some thousand.
        assert relative_error(wave, alone) < 1e-9


def test_the_same_call_gives_the_same_bytes(tiny_model, voices):
    tokens, refs, seeds = utterances(voices)
    first, second = (tiny_model.synthesize(tokens, refs, seeds) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_the_vocoder_of_a_mixed_batch_agrees_to_rounding_in_float32(tiny_model):
    vocoder = tiny_model.mel2wav
    mels = [garbage((80, n), seed=n).float() for n in LENGTHS]
    sources = [garbage((1, n * vocoder.config.frame_samples), seed=100 + n).clamp(-1, 1).float() for n in LENGTHS]
    together = vocoder.decode(padded(mels, 1).float(), padded(sources, 1).float(), LENGTHS)
    f0 = vocoder.f0(padded(mels, 1).float(), LENGTHS)
    for row, (mel, source) in enumerate(zip(mels, sources, strict=True)):
        alone = vocoder.decode(mel[None], source[None])[0]
        assert relative_error(together[row, : len(alone)], alone) < MEL_TOLERANCE
        assert relative_error(f0[row, : mel.shape[1]], vocoder.f0(mel[None])[0]) < MEL_TOLERANCE
