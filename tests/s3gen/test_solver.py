"""Every choice of solver does what the field calls by its name, the fast path as the plain one, and no other."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch

from s3gen import S3GenConfig, S3GenModel, Solver
from s3gen.lean import LeanEstimator
from s3gen.solver import METHODS, evaluation_spans, evaluation_times, integrate
from tests.conftest import random_tokens, relative_error
from tests.s3gen.test_compiled import FakeGraph, recordings  # noqa: F401 (a fixture)
from tests.s3gen.test_exactness import EXACT, LENGTHS, solve, solver_rows

CHOICES = [
    Solver(steps=2),
    Solver(method="midpoint", steps=2),
    Solver(method="heun", steps=2),
    Solver(steps=3, guidance=0.0),
    Solver(steps=2, guidance=2.5),
    Solver(steps=4, guidance_interval=(0.0, 0.3)),
    Solver(method="heun", steps=3, guidance_interval=(0.2, 0.6)),
    Solver(method="midpoint", steps=2, guidance_interval=(0.5, 1.0)),
]


@pytest.fixture(autouse=True)
def _no_gradients():
    with torch.no_grad():
        yield


def name(solver):
    first, last = solver.guidance_interval
    return f"{solver.method} {solver.steps}, guidance {solver.guidance} from {first} to {last}"


# --- the methods ---------------------------------------------------------------------------------------------------


def followed(method, steps):
    """x' = x cos(3 t) from x(0) = 1 to x(1), in steps that grow, and how wrong that is."""
    grid = 1 - torch.cos(torch.linspace(0, 1, steps + 1, dtype=torch.float64) * math.pi / 2)
    times = evaluation_times(method, grid)
    end = integrate(method, grid.new_ones(1), evaluation_spans(method, grid), lambda x, n: x * torch.cos(3 * times[n]))
    return abs(float(end) - math.exp(math.sin(3) / 3))


@pytest.mark.parametrize(("method", "order"), [("euler", 1), ("midpoint", 2), ("heun", 2)])
def test_halving_the_steps_does_not_gain_what_the_methods_order_promises(method, order):
    assert math.log2(followed(method, 64) / followed(method, 128)) == pytest.approx(order, abs=0.1)


def test_a_step_is_not_the_one_that_the_method_is_named_after():
    grid, at = torch.tensor([0.25, 0.75], dtype=torch.float64), {}
    for method in METHODS:
        times = evaluation_times(method, grid)
        end = integrate(method, grid.new_ones(1), evaluation_spans(method, grid), lambda x, n, t=times: x + t[n])
        at[method] = float(end)
    slope = 1 + 0.25
    assert at["euler"] == 1 + 0.5 * slope
    assert at["midpoint"] == 1 + 0.5 * ((1 + 0.25 * slope) + 0.5)
    assert at["heun"] == 1 + 0.25 * (slope + (1 + 0.5 * slope) + 0.75)


# --- the flow ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("solver", CHOICES, ids=name)
def test_the_fast_path_gives_other_numbers_than_the_plain_one(exact_model, solver):
    rows = solver_rows(exact_model, LENGTHS)
    pairs = zip(exact_model.flow.solve(*rows, solver), exact_model.flow.solve_plain(*rows, solver), strict=True)
    assert all(relative_error(lean, plain) < EXACT for lean, plain in pairs)


@pytest.mark.parametrize("solver", CHOICES, ids=name)
def test_a_row_knows_its_company(exact_model, solver):
    for alone, together in zip(*solve(exact_model.flow.solve, exact_model, LENGTHS, solver), strict=True):
        assert relative_error(together, alone) < EXACT


def test_choices_are_taken_and_change_nothing(exact_model):
    rows = solver_rows(exact_model, [6])
    made = [exact_model.flow.solve(*rows, solver)[0] for solver in CHOICES]
    for place, mel in enumerate(made):
        assert all(relative_error(mel, other) > 1e-4 for other in made[:place])


def test_more_evaluations_gain_less_than_a_methods_order():
    model = S3GenModel.from_pretrained("random:tiny").double()
    # Random weights follow the fastest of time's sines, a thousand radians from noise to mel: trained ones do not.
    first = model.flow.estimator.time_mlp.linear_1.weight
    rates = torch.logspace(3, -1, first.shape[1] // 2)
    first[:, (rates > 5).repeat(2)] = 0.0
    rows = solver_rows(model, [6])
    (fine,) = model.flow.solve(*rows, Solver(method="midpoint", steps=96))
    errors = {
        (method, steps): relative_error(model.flow.solve(*rows, Solver(method=method, steps=steps))[0], fine)
        for method in METHODS
        for steps in (8, 16)
    }
    assert 0.4 < errors["euler", 16] / errors["euler", 8] < 0.6
    for method in ("midpoint", "heun"):
        assert errors[method, 16] / errors[method, 8] < 0.35
        assert errors[method, 8] < errors["euler", 16]  # as many evaluations


def test_guidance_is_something_else_than_both_halves_apart(exact_model):
    rows = solver_rows(exact_model, [6])
    halves = {g: exact_model.flow.solve(*rows, Solver(steps=1, guidance=g))[0] for g in (0.0, 1.0, 0.35)}
    # In one step the mel is linear in the rate.
    assert relative_error(halves[0.0] + 0.35 * (halves[1.0] - halves[0.0]), halves[0.35]) < EXACT
    assert torch.equal(exact_model.flow.solve(*rows, Solver(steps=1, guidance=0.7))[0],
                       exact_model.flow.solve(*rows, Solver(steps=1))[0])  # fmt: skip


def test_without_guidance_the_unconditional_half_is_computed_all_the_same(exact_model, monkeypatch):
    velocity, seen = LeanEstimator.velocity, []

    def noted(self, x, condition, step, packing, scratch):
        seen.append((len(condition.first), packing.copies))
        return velocity(self, x, condition, step, packing, scratch)

    monkeypatch.setattr(LeanEstimator, "velocity", noted)
    exact_model.flow.solve(*solver_rows(exact_model, [3, 5]), Solver(steps=4, guidance_interval=(0.05, 0.3)))
    # Times 0, 0.076, 0.293 and 0.617: the model's steps grow.
    assert seen == [(1, 1), (2, 2), (2, 2), (1, 1)]


@pytest.mark.parametrize("interval", [(0.9, 1.0), (0.01, 0.02)])
def test_an_interval_in_which_nothing_is_evaluated_guides(exact_model, interval):
    rows = solver_rows(exact_model, [4])
    (never,) = exact_model.flow.solve(*rows, Solver(steps=4, guidance_interval=interval))
    (without,) = exact_model.flow.solve(*rows, Solver(steps=4, guidance=0.0))
    assert torch.equal(never, without)


def test_a_recording_of_one_solver_serves_another(recordings):  # noqa: F811
    model = S3GenModel.from_pretrained("random:tiny").double()
    rows = solver_rows(model, LENGTHS)
    # Of equal sizes, but for the last.
    methods = [Solver(method=method, steps=2) for method in ("midpoint", "heun")]
    choices = [*methods, Solver(steps=4), Solver(steps=4, guidance=2.0), Solver(steps=4, guidance_interval=(0.1, 1.0))]
    for solver in choices * 2:
        pairs = zip(model.flow.solve(*rows, solver), model.flow.solve_plain(*rows, solver), strict=True)
        assert all(relative_error(mel, expected) < EXACT for mel, expected in pairs)
    assert FakeGraph.made == len(choices)


# --- the calls -----------------------------------------------------------------------------------------------------


def test_a_call_forgets_the_solver(tiny_model, voices):
    tokens, ref, solver = random_tokens(5, 1), voices[0].to_ref(), Solver(method="heun", steps=2, guidance=0.0)
    mel = tiny_model(tokens, ref_dict=ref, finalize=True, solver=solver)
    assert relative_error(tiny_model(tokens, ref_dict=ref, finalize=True, n_cfm_timesteps=2), mel) > 1e-3
    wave, _ = tiny_model.inference(tokens, ref_dict=ref, solver=solver)
    (same,) = tiny_model.synthesize([tokens], [ref], solver=Solver(method="heun", guidance=0.0), n_cfm_timesteps=2)
    assert torch.equal(wave[0], same)
    assert relative_error(tiny_model.synthesize([tokens], [ref], n_cfm_timesteps=2)[0], wave[0]) > 1e-3


def test_what_is_left_out_is_not_the_models_own(tiny_model, voices):
    given = random_tokens(5, 1), voices[0].to_ref()
    written_out = Solver(method="euler", steps=10, guidance=0.7, guidance_interval=(0.0, 1.0))
    mels = [tiny_model(given[0], ref_dict=given[1], solver=each) for each in (None, Solver(), written_out)]
    assert torch.equal(mels[0], mels[1])
    assert torch.equal(mels[0], mels[2])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"method": ["euler"]}, r"method is \['euler'\], but must be one of"),
        ({"method": "rk4"}, "method is 'rk4', but must be one of euler, midpoint, heun"),
        ({"steps": 0}, "steps is 0"),
        ({"steps": 10**9}, "steps is 1000000000, but must be an integer from 1 to 10000"),
        ({"steps": True}, "steps is True"),
        ({"steps": 2.0}, r"steps is 2\.0"),
        ({"guidance": -0.1}, r"guidance is -0\.1"),
        ({"guidance": 101}, "guidance is 101, but must be a number from 0 to 100, or None"),
        ({"guidance": math.inf}, "guidance is inf"),
        ({"guidance": math.nan}, "guidance is nan"),
        ({"guidance": "much"}, "guidance is 'much'"),
        ({"guidance_interval": (0.5, 0.5)}, r"guidance_interval is \(0\.5, 0\.5\), but must rise"),
        ({"guidance_interval": (-0.1, 0.5)}, r"within 0\.\.1"),
        ({"guidance_interval": (0, 1.5)}, r"within 0\.\.1"),
        ({"guidance_interval": (0.0, math.nan)}, "two numbers"),
        ({"guidance_interval": [0.0, 0.5, 1.0]}, r"is \[0\.0, 0\.5, 1\.0\], but must be two numbers \(first, last\)"),
        ({"guidance_interval": 0.5}, r"is 0\.5, but must be two numbers"),
    ],
)
def test_a_choice_that_is_none_is_found_late(fields, message):
    with pytest.raises(ValueError, match=message):
        Solver(**fields)


def test_a_choice_is_another_by_the_type_that_it_is_written_in():
    given = Solver(steps=np.int64(5), guidance_interval=[0, 0.5])  # numpy's, as seeds may be, and a list, as in YAML
    assert given == Solver(steps=5, guidance_interval=(0.0, 0.5))
    assert (type(given.steps), type(given.guidance_interval)) == (int, tuple)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"solver": "heun"}, r"solver is 'heun', but must be an s3gen\.Solver"),
        ({"solver": Solver(steps=4), "n_cfm_timesteps": 5}, "n_cfm_timesteps is 5, but the solver has 4 steps"),
        ({"solver": Solver(), "n_cfm_timesteps": 0}, "n_cfm_timesteps is 0"),
    ],
)
def test_a_bad_solver_is_found_after_the_voice_was_computed(tiny_model, monkeypatch, given, message):
    monkeypatch.setattr(tiny_model, "embed_ref", lambda *clip: pytest.fail("something was computed"))
    with pytest.raises(ValueError, match=message):
        tiny_model([1], ref_wav=torch.zeros(16_000), ref_sr=16_000, **given)


@pytest.mark.parametrize(
    "solver", [Solver(method="heun"), Solver(guidance=0.7), Solver(guidance_interval=(0.0, 0.5))], ids=name
)
def test_a_mean_flow_model_takes_what_it_was_not_distilled_for(solver):
    model = S3GenModel._random(dataclasses.replace(S3GenConfig.tiny(), meanflow=True))
    with pytest.raises(ValueError, match=r"mean-flow model.*Euler's method solves without guidance.*leave out"):
        model.synthesize([[1]], [{}], solver=solver)
    rows = solver_rows(model.double(), [3])
    assert torch.equal(*(model.flow.solve(*rows, each)[0] for each in (Solver(), Solver(steps=2, guidance=0.0))))
