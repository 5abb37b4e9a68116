"""The solver as it runs against the plain one: same weights, same numbers, whatever is fused, packed or hoisted."""

from __future__ import annotations

import dataclasses
import itertools

import pytest
import torch

from s3gen import S3GenConfig, S3GenModel, attention
from s3gen.attention import by_row, over_padding
from s3gen.packing import Packing
from s3gen.scratch import Scratch
from tests.conftest import relative_error
from tests.s3gen.test_exactness import EXACT, LEAK, LENGTHS, TWO_STEPS, garbage, solver_rows

CPU = torch.device("cpu")
ROUNDING = 5e-6  # float32, through every layer and two steps


@pytest.fixture(autouse=True)
def _no_gradients():
    with torch.no_grad():
        yield


def both(model, lengths):
    rows = solver_rows(model, lengths)
    return model.flow.solve(*rows, TWO_STEPS), model.flow.solve_plain(*rows, TWO_STEPS)


@pytest.mark.parametrize("lengths", [LENGTHS, [5], [3, 3, 3]], ids=["mixed", "one row", "equal rows"])
def test_it_gives_the_plain_solvers_numbers(exact_model, lengths):
    for lean, plain in zip(*both(exact_model, lengths), strict=True):
        assert relative_error(lean, plain) < EXACT


def test_in_float32_too(tiny_model):
    mu, prompts, embedding, noise = solver_rows(tiny_model, LENGTHS)
    rows = [row.float() for row in mu], [row.float() for row in prompts], embedding.float(), [n.float() for n in noise]
    for lean, plain in zip(
        tiny_model.flow.solve(*rows, TWO_STEPS), tiny_model.flow.solve_plain(*rows, TWO_STEPS), strict=True
    ):
        assert relative_error(lean, plain) < ROUNDING


def test_mean_flow_runs_without_guidance_and_with_both_times():
    model = S3GenModel._random(dataclasses.replace(S3GenConfig.tiny(), meanflow=True)).double()
    for lean, plain in zip(*both(model, LENGTHS), strict=True):
        assert relative_error(lean, plain) < EXACT


def test_rows_that_lie_end_to_end_need_the_empty_positions_between_them(exact_model, monkeypatch):
    monkeypatch.setattr(Packing, "empty", lambda self, packed: packed)
    for row, (lean, plain) in enumerate(zip(*both(exact_model, LENGTHS), strict=True)):
        # The first row has nothing before it.
        assert row == 0 or relative_error(lean, plain) > LEAK


def test_a_weight_changed_in_place_is_not_forgotten():
    model = S3GenModel.from_pretrained("random:tiny").double()
    rows = solver_rows(model, LENGTHS)
    before = model.flow.solve(*rows, TWO_STEPS)[0]
    model.flow.estimator.down.blocks[0].query.weight.mul_(0.5)
    after, plain = model.flow.solve(*rows, TWO_STEPS)[0], model.flow.solve_plain(*rows, TWO_STEPS)[0]
    assert relative_error(after, before) > LEAK
    assert relative_error(after, plain) < EXACT


def test_a_model_that_moves_to_another_type_takes_its_weights_along():
    model = S3GenModel.from_pretrained("random:tiny")
    model.flow.lean()
    lean, plain = both(model.double(), [4])
    assert relative_error(lean[0], plain[0]) < EXACT


@pytest.mark.parametrize("dtype", ["tf32", "bfloat16", "float16"])
def test_other_types_stay_near_float32(dtype):
    model = S3GenModel.from_pretrained("random:tiny")
    mu, prompts, embedding, noise = solver_rows(model, LENGTHS)
    rows = [row.float() for row in mu], [row.float() for row in prompts], embedding.float(), [n.float() for n in noise]
    exact = model.flow.solve(*rows, TWO_STEPS)
    for lean, plain in zip(model.prepare(dtype=dtype).flow.solve(*rows, TWO_STEPS), exact, strict=True):
        assert lean.dtype == torch.float32
        error = relative_error(lean, plain)
        assert error < 0.05
        # On a CPU there is no TF32, and halves must not silently be float32.
        assert error < ROUNDING if dtype == "tf32" else error > 1e-4


def test_a_misspelt_type_is_refused_by_name(tiny_model):
    with pytest.raises(ValueError, match="'bf16', but must be one of float32, tf32"):
        tiny_model.prepare(dtype="bf16")


# --- attention -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("copies", [1, 2])
@pytest.mark.parametrize("lengths", [LENGTHS, [7], [4, 4]], ids=["mixed", "one row", "equal rows"])
def test_the_ways_of_attention_agree(lengths, copies):
    packing = Packing(lengths, CPU, copies=copies, rounded=True)
    qkv = garbage((copies * packing.size, 3 * 32))
    plain, padded = by_row(qkv, 2, packing, Scratch(qkv)).clone(), over_padding(qkv, 2, packing)
    for start, end in packing.runs():
        assert relative_error(padded[start:end], plain[start:end]) < EXACT
    assert torch.isfinite(plain).all()
    assert torch.isfinite(padded).all()


def test_long_rows_use_the_fused_kernel_with_the_same_numbers(monkeypatch):
    packing = Packing([30, 9], CPU)
    qkv = garbage((packing.size, 3 * 32))
    plain = by_row(qkv, 2, packing, Scratch(qkv)).clone()
    monkeypatch.setattr(attention, "_PLAIN_LENGTH", 10)
    assert relative_error(by_row(qkv, 2, packing, Scratch(qkv)), plain) < EXACT


def by_runs(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k):
    """What CUDA's kernel is documented to do: attention within consecutive runs, none longer than is said."""
    assert cu_seq_q is cu_seq_k
    assert max_q == max_k >= cu_seq_q.diff().max()
    assert cu_seq_q.dtype == torch.int32
    assert (cu_seq_q[0], cu_seq_q[-1]) == (0, len(query))
    out = torch.empty_like(query)
    for start, end in itertools.pairwise(cu_seq_q.tolist()):
        if start < end:
            one = (x[start:end].transpose(0, 1)[None] for x in (query, key, value))
            out[start:end] = torch.nn.functional.scaled_dot_product_attention(*one)[0].transpose(0, 1)
    return out


@pytest.mark.parametrize("rounded", [False, True])
def test_the_variable_length_kernel_would_see_each_row_alone(monkeypatch, rounded):
    packing = Packing(LENGTHS, CPU, copies=2, rounded=rounded)
    qkv = garbage((2 * packing.size, 3 * 32))
    monkeypatch.setattr(attention, "varlen_attn", by_runs)
    together = attention.variable_length(qkv, 2, packing)
    plain = by_row(qkv, 2, packing, Scratch(qkv))
    for start, end in packing.runs():
        assert relative_error(together[start:end], plain[start:end]) < EXACT
