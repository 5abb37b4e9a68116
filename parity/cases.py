"""What is held against the reference: the calls, and the tensors that both sides are given."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from parity.exchange import Plan
from parity.signals import Clip
from s3gen.constants import FRAMES_PER_TOKEN, MEL_BINS, MEL_HOP, SAMPLE_RATE, TOKENIZER_RATE, VOCAB_SIZE
from s3gen.model import S3GenModel
from s3gen.voice import Voice

REFERENCE_RATES = (8_000, TOKENIZER_RATE, SAMPLE_RATE, 44_100)  # Hz
LONG_SECONDS = (33.3, 63.7)  # two and three windows of the tokenizer
HARMONICS = 9
_PROMPT_SECONDS = (1.6, 2.4, 3.0)
_EMBED_SECONDS = 2.0
_EMBED_STEP_SECONDS = 0.173  # so that every clip has another length, even and odd in frames and tokens


@dataclass(frozen=True, kw_only=True, slots=True)
class MelCase:
    """Tokens to mel in so many steps, after one of the prompts; the look-ahead held back unless final."""

    tokens: int
    steps: int
    prompt: int = 0
    final: bool = True

    @property
    def name(self) -> str:
        tokens = "1 token" if self.tokens == 1 else f"{self.tokens} tokens"
        return f"{tokens}, {self.steps} steps" + ("" if self.final else ", finalize=False")


BASE = (
    MelCase(tokens=1, steps=10),
    MelCase(tokens=7, steps=10, prompt=1),
    MelCase(tokens=100, steps=10, prompt=1),
    MelCase(tokens=4, steps=10, final=False),
    MelCase(tokens=100, steps=10, prompt=0, final=False),
    MelCase(tokens=1, steps=4, prompt=1),
    MelCase(tokens=7, steps=4),
    MelCase(tokens=40, steps=4, prompt=2),
)
MEANFLOW = (
    MelCase(tokens=1, steps=2),
    MelCase(tokens=7, steps=2, prompt=1),
    MelCase(tokens=100, steps=2, prompt=2),
    MelCase(tokens=4, steps=2, final=False),
    MelCase(tokens=100, steps=2, prompt=1, final=False),
    MelCase(tokens=7, steps=5),
    MelCase(tokens=40, steps=5, prompt=2),
)
BATCHED_STEPS = {False: 4, True: 5}  # by mean-flow: the cases with these steps also go through as one batch
AUDIO_CASE = "7 tokens, 4 steps, from audio"
SOURCE_CASE = "voiced and unvoiced frames"


def prompts(model: S3GenModel, clips: Sequence[Clip]) -> list[Voice]:
    """Short prompts, as this package embeds them: both sides are given the same."""
    return [
        Voice.from_ref(model.embed_ref(clips[place % len(clips)].at(SAMPLE_RATE, seconds), SAMPLE_RATE))
        for place, seconds in enumerate(_PROMPT_SECONDS)
    ]


def add_references(plan: Plan, clips: Sequence[Clip]) -> None:
    """Every clip at every rate, through tokenizer, speaker encoder and prompt mel."""
    for place, clip in enumerate(clips):
        for rate in REFERENCE_RATES:
            wav = clip.at(rate, _EMBED_SECONDS + place * _EMBED_STEP_SECONDS)
            plan.add(f"{clip.name}, {rate} Hz", "embed", {"wav": wav}, rate=rate)


def add_long_clips(plan: Plan, clips: Sequence[Clip]) -> None:
    """Clips that the tokenizer takes in windows: all voices after one another, again and again."""
    spoken = torch.cat([clip.at(TOKENIZER_RATE, 60.0) for clip in clips])
    for seconds in LONG_SECONDS:
        samples = int(seconds * TOKENIZER_RATE)
        wav = spoken.repeat(-(-samples // len(spoken)))[:samples]
        plan.add(f"{seconds} s", "tokenize", {"wav": wav})


def add_mels(plan: Plan, cases: Sequence[MelCase], voices: Sequence[Voice]) -> None:
    """Tokens to mel, and to the wave where all tokens are made."""
    for case in cases:
        voice = voices[case.prompt]
        tokens = random_tokens(case.name, case.tokens)
        frames = FRAMES_PER_TOKEN * (len(voice.prompt_token) + case.tokens)
        given = {
            "tokens": tokens,
            "prompt_token": voice.prompt_token,
            "prompt_feat": voice.prompt_feat,
            "embedding": voice.embedding,
            "noise": normal(case.name, MEL_BINS, frames),
        }
        if case.final:
            given |= source_noise(case.name, FRAMES_PER_TOKEN * case.tokens, prefix="source_")
            plan.add(case.name, "speak", given, steps=case.steps)
        else:
            plan.add(case.name, "mel", given, steps=case.steps, finalize=False)


def add_audio_case(plan: Plan, clip: Clip) -> None:
    """From reference audio to the mel in one call, at a length where the reference keeps no odd frame."""
    wav, tokens = clip.at(SAMPLE_RATE, _PROMPT_SECONDS[0]), random_tokens(AUDIO_CASE, 7)
    frames = len(wav) // MEL_HOP + FRAMES_PER_TOKEN * len(tokens)
    given = {"tokens": tokens, "wav": wav, "noise": normal(AUDIO_CASE, MEL_BINS, frames)}
    plan.add(AUDIO_CASE, "mel_from_audio", given, rate=SAMPLE_RATE, steps=4)


def add_source_case(plan: Plan) -> None:
    """The source of `switching_f0`."""
    f0 = switching_f0()
    plan.add(SOURCE_CASE, "source", {"f0": f0, **source_noise(SOURCE_CASE, len(f0))})


def switching_f0() -> Tensor:
    """F0 in Hz (100,) that is voiced, then not, then near the threshold of 10 Hz, then voiced again."""
    near = torch.tensor([9.9, 10.1])
    return torch.cat((torch.linspace(80, 260, 40), torch.zeros(10), near, torch.full((48,), 119.0)))


def random_tokens(name: str, count: int) -> Tensor:
    return torch.randint(VOCAB_SIZE, (count,), generator=_generator(f"tokens of {name}"))


def normal(name: str, *shape: int) -> Tensor:
    return torch.randn(shape, generator=_generator(f"noise of {name}"))


def source_noise(name: str, frames: int, *, prefix: str = "") -> dict[str, Tensor]:
    """Starting phases (H, 1), the fundamental's 0, and noise (H, S)."""
    phase = (torch.rand(HARMONICS, 1, generator=_generator(f"phase of {name}")) - 0.5) * 2 * torch.pi
    phase[0] = 0
    return {"phase": phase, prefix + "noise": normal(f"{name}, source", HARMONICS, frames * MEL_HOP)}


def _generator(name: str) -> torch.Generator:
    return torch.Generator().manual_seed(int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") >> 1)
