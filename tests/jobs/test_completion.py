"""What a shell offers for a line, asked as the shells ask."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from jobs.changes import MAY_CHANGE
from jobs.completion import SHELLS
from jobs.config.config import EngineConfig, JobConfig, config_from
from jobs.config.refusals import SECRET_KEYS
from tests.jobs.command import cli

ENGINE = [f"engine.{name}=" for name in list(EngineConfig.model_fields)[2:]]


def offered(line: str, shell: str = "zsh") -> list[str]:
    """Candidates, each with its kind."""
    result = cli(environment={"_S3GEN_COMPLETE": f"{shell}_complete", "COMP_LINE": line})
    return result.stdout.split()


@pytest.mark.parametrize(
    ("line", "candidates"),
    [
        ("s3gen ", ["plain,voices"]),
        ("s3gen syn", ["plain,synth"]),
        ("s3gen plan --cal", ["plain,--calibrate"]),
        ("s3gen plan my_j", ["file,my_j"]),
        ("s3gen plan my_job.yaml --set engine.d", ["plain,engine.device=", "plain,engine.dtype="]),
        ("s3gen plan my_job.yaml --set engine.dtype=b", ["plain,engine.dtype=bfloat16"]),
        (
            "s3gen plan my_job.yaml --set=keep_inputs=",
            ["plain,--set=keep_inputs=true", "plain,--set=keep_inputs=false"],
        ),
        # Shells that replace whole words get the option with it; a path is for the shell to complete.
        ("s3gen plan my_job.yaml --set=engine.dt", ["plain,--set=engine.dtype="]),
        ("s3gen plan my_job.yaml --set=voices=data/", ["file,data/"]),
        ("s3gen plan my_job.yaml --manifest=data/", ["file,data/"]),
        ("s3gen synth --set workers=2 --set format=w", ["plain,format=webdataset"]),
        ("s3gen synth --set batch.max_frames=", ["plain,batch.max_frames=auto"]),
        ("s3gen synth --set manifest=data/", ["file,data/"]),
        ("s3gen synth --set nonsense=", []),
        ("s3gen synth --storage-options se", ["file,se"]),
        ("s3gen verify my_sp", ["dir,my_sp"]),
    ],
)
def test_a_line_is_completed_to_what_the_command_refuses(line: str, candidates: list[str]) -> None:
    assert offered(line)[: len(candidates)] == candidates
    assert bool(offered(line)) == bool(candidates)


def test_a_key_of_the_configuration_is_not_offered() -> None:
    keys = [each.removeprefix("plain,").rstrip("=") for each in offered("s3gen synth --set ")]
    assert {key.split(".")[0] for key in keys} == set(JobConfig.model_fields)
    assert len(keys) == len(set(keys))


def test_a_resume_is_offered_what_it_refuses() -> None:
    keys = [each.removeprefix("plain,").rstrip("=") for each in offered("s3gen resume my_speech --set ")]
    assert {key.split(".")[0] for key in keys} == MAY_CHANGE | set(SECRET_KEYS)


def test_an_offered_choice_is_refused_by_the_configuration() -> None:
    required = {"model": "m", "manifest": "m", "voices": "v", "output": "o"}
    for key in offered("s3gen synth --set "):
        for choice in offered(f"s3gen synth --set {key.removeprefix('plain,')}"):
            kind, _, change = choice.partition(",")
            if kind == "plain":
                config_from(required, [change])


@pytest.mark.parametrize("shell", SHELLS)
def test_a_script_lacks_what_its_shell_needs(shell: str) -> None:
    script = cli("completion", shell).stdout
    assert f"_S3GEN_COMPLETE={shell}_complete" in script
    assert script == SHELLS[shell].source_template


@pytest.mark.parametrize(
    ("line", "candidates"),
    [
        ("s3gen pl", ["plan"]),
        ("s3gen synth job.yaml --set engine.dt", ["engine.dtype="]),
        # Bash replaces what stands behind the last `=`, and only that.
        ("s3gen synth job.yaml --set engine.dtype=f", ["float32", "float16"]),
        ("s3gen synth job.yaml --set engine.dtype=", ["float32", "tf32", "bfloat16", "float16"]),
        ("s3gen synth job.yaml --set=eng", ["engine.device=", "engine.dtype=", *ENGINE]),
        ("s3gen synth job.yaml --set=engine.dtype=f", ["float32", "float16"]),
        ("s3gen synth job.yaml --set x=a:b --set=audio=", ["flac", "wav", "ogg", "mp3"]),
        ("s3gen plan job.yaml --pri", ["--price"]),
        ("s3gen status s3://bucket/out --js", ["--json"]),
    ],
)
def test_bash_replaces_half_a_word_with_a_whole_one(line: str, candidates: list[str]) -> None:
    code = f"""
        compopt() {{ :; }}    # which is for interactive shells
        COMP_LINE={line!r} COMP_POINT={len(line)}
        _s3gen_completion s3gen
        printf '%s\\n' "${{COMPREPLY[@]}}"
    """
    script = cli("completion", "bash").stdout
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    run = subprocess.run(
        ["bash", "--norc", "-uc", script + code],
        capture_output=True,
        text=True,
        env=os.environ | {"PATH": path},
        check=True,
    )
    assert run.stdout.split() == candidates
    assert run.stderr == ""
