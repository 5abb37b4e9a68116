"""TF32 is emulated bit by bit, in every product that the flow and the vocoder make."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from benchmarks.tf32 import Tf32Products, rounded
from s3gen import S3GenModel, Voice
from tests.conftest import random_tokens, relative_error

STEP = 2.0**-10  # between neighbours in 1 .. 2


def as_bits(bits: int) -> torch.Tensor:
    return torch.tensor([bits], dtype=torch.int64).to(torch.int32).view(torch.float32)


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        (0x3F800000, 0x3F800000),  # 1
        (0x3F801000, 0x3F800000),  # 1 and half a step: a tie, down to even
        (0x3F801001, 0x3F802000),  # just above the tie
        (0x3F800FFF, 0x3F800000),  # just below
        (0x3F803000, 0x3F804000),  # a step and a half: a tie, up to even
        (0x3FFFF000, 0x40000000),  # carried into the exponent: 2
        (0xBF801001, 0xBF802000),  # the sign does not matter
        (0x00001001, 0x00002000),  # below the normal numbers
        (0x80000000, 0x80000000),  # -0
        (0x7F800000, 0x7F800000),  # infinity
        (0xFF800000, 0xFF800000),
    ],
)
def test_number_is_rounded_to_another_than_the_nearest(given: int, wanted: int) -> None:
    signed = given - 2**32 if given >= 2**31 else given
    wanted = wanted - 2**32 if wanted >= 2**31 else wanted
    assert rounded(as_bits(signed)).view(torch.int32).item() == wanted


def test_nan_becomes_a_number() -> None:
    assert rounded(as_bits(0x7FFFFFFF)).isnan().all()
    assert rounded(as_bits(0x7F800001)).isnan().all()


def test_rounding_is_coarser_or_finer_than_ten_bits() -> None:
    x = torch.rand(10_000) + 1
    steps = rounded(x) / STEP
    assert torch.equal(steps, steps.round())
    assert (rounded(x) - x).abs().max() <= STEP / 2


def products() -> dict[str, torch.Tensor]:
    """One of each kind that the model has, from operands that are no TF32 numbers."""
    generator = torch.Generator().manual_seed(0)
    a, b, bias = (torch.rand(shape, generator=generator) + 1 for shape in ((2, 9, 16), (2, 16, 9), (16,)))
    weight = torch.rand(16, 16, 3, generator=generator) + 1
    out = torch.zeros(2, 9, 9)
    return {
        "linear": F.linear(a, weight[:, :, 0], bias) - bias,
        "linear, no bias": F.linear(a[0], weight[:, :, 0]),
        "matmul": a @ b,
        "mm, out": torch.mm(a[0], b[0], out=out[0]),
        "addmm": torch.addmm(torch.zeros(9), a[0], b[0]),
        "baddbmm, out": torch.baddbmm(torch.zeros(2, 9, 9), a, b, out=torch.empty(2, 9, 9)),
        "conv1d": F.conv1d(b, weight),
        "conv2d": F.conv2d(b[:, :, None], weight[:, :, None]),
        "conv_transpose1d": F.conv_transpose1d(b, weight, stride=2),
        "attention": F.scaled_dot_product_attention(a[None], a[None], a[None]),
        "attention, masked": F.scaled_dot_product_attention(
            a[None], a[None], a[None], attn_mask=torch.ones(9, 9).bool()
        ),
    }


def test_kind_of_product_is_left_in_float32() -> None:
    with torch.no_grad():
        exact = products()
        with Tf32Products():
            coarse = products()
    for name, value in exact.items():
        error = relative_error(coarse[name], value)
        assert 1e-5 < error < 1e-3, f"{name}: {error}"


def test_operands_in_tf32_already_are_changed() -> None:
    a, b = rounded(torch.rand(7, 8)), rounded(torch.rand(8, 5))
    with Tf32Products():
        assert torch.equal(a @ b, torch.mm(a, b))


def test_other_types_are_rounded() -> None:
    a = torch.rand(7, 7, dtype=torch.float64)
    with Tf32Products():
        coarse = a @ a
    assert torch.equal(coarse, a @ a)


def test_flow_or_vocoder_is_beyond_the_emulation(tiny_model: S3GenModel, voices: list[Voice]) -> None:
    tokens, ref = random_tokens(20, 1), voices[0].to_ref()
    mel = tiny_model(tokens, ref_dict=ref, finalize=True)
    source = tiny_model.mel2wav.source(tiny_model.mel2wav.f0(mel))
    wave = tiny_model.mel2wav.decode(mel, source)
    with Tf32Products():
        coarse_mel = tiny_model(tokens, ref_dict=ref, finalize=True)
        coarse_wave = tiny_model.mel2wav.decode(mel, source)
        same_f0 = tiny_model.mel2wav.f0(mel)
    assert 1e-5 < relative_error(coarse_mel, mel) < 1e-2
    assert 1e-5 < relative_error(coarse_wave, wave) < 1e-2
    assert torch.equal(same_f0, tiny_model.mel2wav.f0(mel)), "F0 is never in TF32"
    assert not math.isnan(coarse_wave.sum())
