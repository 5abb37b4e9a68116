"""What is compared, and how near it must be: one row of the table each."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from parity.exchange import Answer, Plan
from s3gen import S3GenModel
from s3gen.constants import FRAMES_PER_TOKEN, LOOKAHEAD_TOKENS
from s3gen.ragged import pad_rows

# Relative L2. Float32 rounds by 6e-8, which grows through the layers to 1e-6 in the mel and 3e-6 in the wave, in the
# reference against its own float64 too. A guidance of 0.701 for 0.7 makes 5e-4; only a norm's epsilon can hide below.
FIDELITY = 1e-5
# The reference sums the phase of up to 10^5 samples in float32; this package sums it in float64.
SOURCE_LIMIT = 1e-3
# F0's rounding grows to a phase error with the seconds (whole chains only).
WHOLE_LIMIT = 1e-3
# A token is eight numbers rounded to whole digits. Float32 moves them by up to 4e-6, in the reference against its own
# float64 too: a token whose number lies so close to the edge between two digits may be either.
TIE = 1e-5
# Weight norm taken apart and folded again.
WEIGHT_LIMIT = 1e-6
VOICED_HZ = (30.0, 300.0)


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One comparison: relative L2, or a count of differences where the limit is 0."""

    quantity: str
    case: str
    error: float
    limit: float

    @property
    def ok(self) -> bool:
        return self.error <= self.limit


def own_mel(model: S3GenModel, given: Mapping[str, Tensor], steps: int, *, finalize: bool = True) -> Tensor:
    """This package's log-mel (80, T) for what a case gives; the noise of held back tokens is left out."""
    held = 0 if finalize else LOOKAHEAD_TOKENS * FRAMES_PER_TOKEN
    noise = given["noise"][None, :, : given["noise"].shape[1] - held]
    ref = {name: given[name][None] for name in ("prompt_token", "prompt_feat", "embedding")}
    return model(given["tokens"], ref_dict=ref, finalize=finalize, n_cfm_timesteps=steps, noise=noise)[0]


def voiced_row(f0: Tensor) -> Row:
    """Unvoiced frames would leave the harmonic source untried."""
    outside = int(((f0 < VOICED_HZ[0]) | (f0 > VOICED_HZ[1])).sum())
    return Row(quantity=f"frames outside {VOICED_HZ[0]:.0f}..{VOICED_HZ[1]:.0f} Hz", case="", error=outside, limit=0)


def batch_rows(model: S3GenModel, plan: Plan, answer: Answer, steps: int) -> Iterator[Row]:
    """One ragged batch of this package against the reference one by one."""
    chosen = [c["case"] for c in plan.calls if c["call"] == "speak" and c["options"]["steps"] == steps]
    given = [plan.inputs[case] for case in chosen]
    prompts = [row["prompt_token"] for row in given]
    ref = {
        "prompt_token": pad_rows(prompts),
        "prompt_token_len": torch.tensor([len(row) for row in prompts]),
        "prompt_feat": pad_rows([row["prompt_feat"] for row in given]),
        "prompt_feat_len": torch.tensor([FRAMES_PER_TOKEN * len(row) for row in prompts]),
        "embedding": torch.stack([row["embedding"] for row in given]),
    }
    mels = model(
        pad_rows([row["tokens"] for row in given]),
        ref_dict=ref,
        finalize=True,
        speech_token_lens=[len(row["tokens"]) for row in given],
        n_cfm_timesteps=steps,
        noise=pad_rows([row["noise"].T for row in given]).transpose(1, 2),
    )
    for case, mel in zip(chosen, mels, strict=True):
        expected = answer.outputs[case]["mel"]
        error = relative_error(mel[:, : expected.shape[1]], expected)
        yield Row(quantity="mel", case=f"{case}, in a batch of {len(chosen)}", error=error, limit=FIDELITY)


def relative_error(found: Tensor, expected: Tensor) -> float:
    """Relative L2; infinite when the shapes differ."""
    if found.shape != expected.shape:
        return math.inf
    return float((found.double() - expected.double()).norm() / expected.double().norm())


def error_row(quantity: str, found: Tensor, expected: Tensor, limit: float = FIDELITY) -> Row:
    """The relative error of one tensor; whose case is filled in later."""
    return Row(quantity=quantity, case="", error=relative_error(found, expected), limit=limit)


def differences_row(quantity: str, found: Tensor, expected: Tensor, margin: Tensor) -> Row:
    """How many tokens differ (all of them where the counts do); ties are told, not counted."""
    if found.shape != expected.shape:
        return Row(quantity=f"{quantity}: {len(found)}, not {len(expected)}", case="", error=math.inf, limit=0)
    different = found != expected
    ties = int((different & (margin < TIE)).sum())
    told = f"{quantity} that differ, of {len(expected)} ({expected.unique().numel()} ids, {ties} ties)"
    return Row(quantity=told, case="", error=int(different.sum()) - ties, limit=0)
