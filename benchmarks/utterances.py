"""What is spoken in a benchmark: random tokens after random prompts, of lengths as real corpora have them."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import torch

from benchmarks.flops import Row
from parity import cases
from s3gen import Voice
from s3gen.constants import FRAMES_PER_TOKEN, MEL_BINS, SAMPLE_RATE, SAMPLES_PER_TOKEN, SPEAKER_DIM, TOKEN_RATE

_SPREAD = 2  # standard deviations between the middle and either end of a range of lengths


@dataclass(frozen=True, kw_only=True, slots=True)
class Utterance:
    """A name, tokens (T,) and the voice that says them."""

    name: str
    tokens: torch.Tensor
    voice: Voice

    @property
    def samples(self) -> int:
        return len(self.tokens) * SAMPLES_PER_TOKEN

    @property
    def seconds(self) -> float:
        """Of the audio that is made."""
        return self.samples / SAMPLE_RATE

    @property
    def row(self) -> Row:
        """Its prompt and itself in mel frames."""
        return Row(prompt=len(self.voice.prompt_feat), made=len(self.tokens) * FRAMES_PER_TOKEN)

    @property
    def frames(self) -> int:
        """What it costs in a batch: prompt and generated frames."""
        return sum(self.row)


def draw(
    count: int, seconds: tuple[float, float], prompt_seconds: tuple[float, float], seed: int = 0
) -> list[Utterance]:
    """Utterances whose lengths are log-normal within a range, each after a prompt of its own.

    Args:
        count: how many.
        seconds: shortest and longest; the middle is their geometric mean, the ends are two standard deviations away.
        prompt_seconds: shortest and longest prompt, all lengths between being as likely.
        seed: of lengths, tokens and prompts.
    """
    drawn = random.Random(seed)
    counts = [max(1, round(_log_normal(drawn, *seconds) * TOKEN_RATE)) for _ in range(count)]
    return of_tokens(counts, prompt_seconds, seed)


def _log_normal(drawn: random.Random, shortest: float, longest: float) -> float:
    normal = NormalDist()
    low, high = normal.cdf(-_SPREAD), normal.cdf(_SPREAD)
    deviations = normal.inv_cdf(low + drawn.random() * (high - low)) / _SPREAD
    return (shortest * longest) ** 0.5 * (longest / shortest) ** (deviations / 2)


def of_tokens(counts: Sequence[int], prompt_seconds: tuple[float, float], seed: int = 0) -> list[Utterance]:
    """Utterances of given numbers of tokens; the rest as for `draw`."""
    drawn = random.Random(seed)
    return [_utterance(f"{seed}:{place}", count, drawn.uniform(*prompt_seconds)) for place, count in enumerate(counts)]


def _utterance(name: str, tokens: int, prompt_seconds: float) -> Utterance:
    """Tokens and voice follow from the name."""
    prompt = max(1, round(prompt_seconds * TOKEN_RATE))
    voice = Voice(
        prompt_token=cases.random_tokens(f"{name}, prompt", prompt),
        prompt_feat=2 * cases.normal(f"{name}, prompt", FRAMES_PER_TOKEN * prompt, MEL_BINS) - 5,
        embedding=cases.normal(f"{name}, embedding", SPEAKER_DIM),
    )
    return Utterance(name=name, tokens=cases.random_tokens(name, tokens), voice=voice)


def sample(utterances: Sequence[Utterance], count: int) -> list[Utterance]:
    """So many of them, spread evenly over their lengths; all when there are no more."""
    ordered = sorted(utterances, key=lambda each: each.frames)
    if count >= len(ordered):
        return list(utterances)
    return [ordered[(2 * place + 1) * len(ordered) // (2 * count)] for place in range(count)]
