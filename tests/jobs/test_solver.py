"""A job's solver: what its configuration says reaches the model, and what cannot be is found before anything begins."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, get_args

import pytest

from jobs.changes import job_changes
from jobs.config.config import EngineConfig, JobConfig, config_from
from jobs.engine.models import check_solver, solver_of
from jobs.errors import InputError
from s3gen import S3GenConfig, S3GenModel, Solver
from s3gen.solver import METHODS, MOST_GUIDANCE, MOST_STEPS
from tests.jobs.command import cli
from tests.jobs.inputs import build_table, good_rows, write_clips, write_config, write_manifest

PATHS = {"model": "random:tiny", "manifest": "m", "voices": "v", "output": "o"}
CHOICE = {"solver": "midpoint", "n_cfm_timesteps": 4, "guidance": 1, "guidance_interval": [0, 0.5]}


def _config(**engine: Any) -> JobConfig:
    return config_from({**PATHS, "engine": engine})


def test_a_key_gets_lost_on_the_way() -> None:
    assert solver_of(_config()) == Solver()
    wanted = Solver(method="midpoint", steps=4, guidance=1.0, guidance_interval=(0.0, 0.5))
    assert solver_of(_config(**CHOICE)) == wanted
    assert solver_of(config_from(_config(**CHOICE).frozen())) == wanted


def test_what_the_library_can_is_refused_to_jobs() -> None:
    assert get_args(EngineConfig.model_fields["solver"].annotation) == tuple(METHODS)
    assert solver_of(_config(n_cfm_timesteps=MOST_STEPS)).steps == MOST_STEPS
    assert solver_of(_config(guidance=MOST_GUIDANCE)).guidance == MOST_GUIDANCE


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("solver=rk4", "engine.solver: 'rk4' is refused: give euler, midpoint or heun"),
        ("solver=Huen", "did you mean heun?"),
        ("n_cfm_timesteps=20000", "engine.n_cfm_timesteps: 20000 is refused: give at most 10000 or null"),
        ("guidance=-1", "engine.guidance: -1 is refused: give 0.0 or a larger number or null"),
        (f"guidance={MOST_GUIDANCE + 1}", "engine.guidance: 101 is refused"),
        ("guidance=.nan", "engine.guidance: nan is refused"),
        (
            "guidance_interval=[0.5, 0.2]",
            "engine.guidance_interval: [0.5, 0.2] is refused: give two numbers from 0 to 1",
        ),
        ("guidance_interval=[0, 1.5]", "[0, 1.5] is refused"),
        ("guidance_interval=[0.5]", "such as [0, 0.6], or null"),
        ("guidance_interval=[0, yes]", "is refused: give two numbers"),
        ("guidance_interval=[0, .nan]", "is refused: give two numbers"),
        ("guidance_interval=0.5", "engine.guidance_interval: 0.5 is refused: give two numbers"),
        ("guidence=1", "did you mean engine.guidance?"),
    ],
)
def test_a_wrong_value_is_refused_without_the_right_one(change: str, says: str) -> None:
    with pytest.raises(InputError) as caught:
        config_from(PATHS, [f"engine.{change}"])
    assert says in str(caught.value)


def test_a_resume_goes_on_with_another_solver() -> None:
    was, now = ({"config": _config(**engine).frozen()} for engine in ({}, CHOICE))
    assert job_changes(was, was) == []
    assert job_changes(was, now) == [
        ("engine.guidance", "null", "1.0"),
        ("engine.guidance_interval", "null", "[0.0, 0.5]"),
        ("engine.n_cfm_timesteps", "null", "4"),
        ("engine.solver", '"euler"', '"midpoint"'),
    ]


def test_the_solver_is_said_wrong_where_people_read() -> None:
    assert EngineConfig().solved == "the model's own number of flow steps"
    said = EngineConfig(solver="heun", n_cfm_timesteps=5, guidance=0.5, guidance_interval=[0.0, 0.6]).solved
    assert said == "5 flow steps by heun, guidance 0.5, guided from time 0 to 0.6"


@pytest.fixture(scope="module")
def mean_flow() -> S3GenModel:
    return S3GenModel._random(dataclasses.replace(S3GenConfig.tiny(), meanflow=True))


@pytest.mark.parametrize("engine", [{"solver": "heun"}, {"guidance": 0.7}, {"guidance_interval": [0, 0.5]}])
def test_a_mean_flow_model_is_guided(mean_flow: S3GenModel, engine: dict[str, Any]) -> None:
    check_solver(mean_flow, _config(n_cfm_timesteps=3, guidance=0))
    with pytest.raises(InputError, match=r"engine\.solver, .*: this is a mean-flow model.*leave out method, guidance"):
        check_solver(mean_flow, _config(**engine))


def test_a_job_begins_that_its_model_cannot_do(mean_flow: S3GenModel, tmp_path: Path) -> None:
    mean_flow.save_pretrained(tmp_path / "model")
    write_clips(tmp_path / "clips")
    config = write_config(
        tmp_path / "job.yaml",
        model=str(tmp_path / "model"),
        manifest=str(write_manifest(tmp_path / "m.parquet", good_rows(2))),
        voices=str(build_table(mean_flow, tmp_path / "clips", tmp_path / "v.parquet")),
        output=str(tmp_path / "out"),
        engine={"solver": "heun"},
    )
    for command in (["synth", config], ["plan", config, "--calibrate"]):
        result = cli(*command)
        assert result.exit_code == 2
        assert "this is a mean-flow model" in result.stderr
    assert not (tmp_path / "out").exists()
