"""The command line, as tests give commands."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from click.testing import CliRunner, Result

from jobs.cli import main


def cli(*arguments: str | Path, environment: Mapping[str, str] | None = None) -> Result:
    words = [str(argument) for argument in arguments]
    return CliRunner().invoke(main, words, catch_exceptions=False, env=environment, prog_name="s3gen")
