"""The command line, as tests give commands."""

from __future__ import annotations

from pathlib import Path

from click.testing import CliRunner, Result

from jobs.cli import main


def cli(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments], catch_exceptions=False)
