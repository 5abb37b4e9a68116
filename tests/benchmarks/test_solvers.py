"""Every solver is timed and held against the reference and against a fine solution, and no figure is another's."""

from __future__ import annotations

import argparse
import json
from typing import Any

import pytest

from benchmarks import solvers
from benchmarks.solvers import SOLVERS, solver_of
from s3gen import Solver

ARGUMENTS = ["--device", "cpu", "--model", "random:tiny", "--threads", "1", "--tokens", "5", "9"]
ARGUMENTS += ["--prompt-seconds", "0.4", "0.6", "--rounds", "1"]


@pytest.fixture(name="found", scope="module")
def _found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    path = tmp_path_factory.mktemp("solvers") / "report.json"
    asked = ["--solvers", "euler:20", "heun:5", "euler:10:0", "euler:10", "--fine", "midpoint:40", "--calm"]
    assert solvers.main([*ARGUMENTS, *asked, "--report", str(path)]) == 0
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def test_a_solver_is_left_out_or_done_twice(found: dict[str, Any]) -> None:
    assert [each["solver"] for each in found["solvers"]] == ["euler:10", "euler:20", "heun:5", "euler:10:0"]
    assert [each["evaluations"] for each in found["solvers"]] == [20, 40, 20, 10]
    for each in found["solvers"]:
        assert each["audio_seconds_per_second"]["min"] > 0
        assert len(each["distances"]) == 2
    assert found["solvers"][0]["beside_reference"]["median"] == 1


def test_the_reference_is_far_from_itself_or_fine(found: dict[str, Any]) -> None:
    for ten, twenty, heun, unguided in zip(*(each["distances"] for each in found["solvers"]), strict=True):
        assert ten["mel"] == ten["wave"] == 0
        assert 0 < twenty["fine_mel"] < 0.7 * ten["fine_mel"]
        assert heun["fine_mel"] < twenty["fine_mel"]
        assert unguided["own_mel"] < 0.5 * unguided["fine_mel"]
        assert all(far["own_mel"] == far["fine_mel"] for far in (ten, twenty, heun))
        assert all(0 < far["wave"] < 1 for far in (twenty, heun, unguided))


def test_random_weights_are_kept_quiet(found: dict[str, Any]) -> None:
    said = solvers.markdown(found)
    assert "a random model is not a trained one, and this one is calm" in said
    assert said.count("\n| ") == 1 + 4
    assert "| euler:10:0 | 10 |" in said


def test_a_choice_is_read_as_another_one() -> None:
    assert solver_of("heun:5") == Solver(method="heun", steps=5)
    assert solver_of("euler:10:0") == Solver(steps=10, guidance=0.0)
    assert solver_of("euler:4::0.1-1") == Solver(steps=4, guidance_interval=(0.1, 1.0))
    assert solver_of("midpoint:4:0.5:0-0.25") == Solver(
        method="midpoint", steps=4, guidance=0.5, guidance_interval=(0.0, 0.25)
    )
    assert len({solver_of(each) for each in SOLVERS}) == len(SOLVERS)


@pytest.mark.parametrize("text", ["euler", "euler:x", "rk4:3", "euler:3:a", "euler:3:1:0.5", "euler:3:1:0-1:2", ":"])
def test_what_is_no_choice_is_taken_for_one(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match=r"is no METHOD:STEPS\[:GUIDANCE"):
        solver_of(text)


def test_a_solver_that_the_model_cannot_have_is_found_after_minutes(capsys: pytest.CaptureFixture[str]) -> None:
    assert solvers.main([*ARGUMENTS, "--meanflow", "--solvers", "euler:4", "heun:2"]) == 1
    assert "mean-flow model" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        solvers.main(["--model", "somewhere", "--device", "cpu", "--calm"])
    assert "--calm is for random:tiny and random:full" in capsys.readouterr().err
