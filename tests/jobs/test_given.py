"""What a command suggests as the next one."""

from __future__ import annotations

import shlex

import pytest

from jobs.given import Given


def test_a_suggested_command_is_about_another_job() -> None:
    given = Given(
        config="my job.yaml",
        changes=("engine.dtype=tf32", "voices=it's mine.parquet"),
        manifest="data/*.parquet",
        limit=20,
        storage_options="keys.yaml",
    )
    line = given.again("plan", "--speed", "3")
    assert shlex.split(line) == [
        *("s3gen", "plan", "my job.yaml", "--set", "engine.dtype=tf32", "--set", "voices=it's mine.parquet"),
        *("--manifest", "data/*.parquet", "--storage-options", "keys.yaml", "--speed", "3"),
    ]
    assert Given(config="job.yaml").again("plan") == "s3gen plan job.yaml"


@pytest.mark.parametrize("change", ["storage_options={key: hunter22}", " storage_options.s3.secret=hunter22"])
def test_a_suggested_command_shows_a_secret(change: str) -> None:
    given = Given(config="job.yaml", changes=("seed=3", change))
    assert given.again("plan") == "s3gen plan job.yaml --set seed=3 --storage-options FILE"
    assert given.options() == ["--storage-options", "FILE"]
