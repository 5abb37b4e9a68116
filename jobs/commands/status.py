"""`s3gen status`."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import click

from jobs.command import FINISHED, Context, command, json_option, options_of, output_argument, storage_option
from jobs.progress import clock_time

if TYPE_CHECKING:
    from jobs.status import Status


@click.command()
@output_argument
@json_option
@storage_option
@command
def status(context: Context, output: str, as_json: bool, storage_options: str | None) -> int:
    """Say how far a job is, from its output alone.

    \b
    Examples:
      s3gen status my_speech
      s3gen status s3://bucket/speech --json

    \b
    Exit codes:
      0  it could answer, whatever the state is
      2  no such job
    """
    from jobs.status import status as read

    found = read(output, options_of(storage_options))
    if as_json:
        click.echo(json.dumps(found.as_dict()))
    else:
        _print_status(found)
    return FINISHED


def _print_status(found: Status) -> None:
    about = "about " if found.estimated else ""
    failed = f", {about}{found.rows_failed} failed" if found.rows_failed else ""
    eta = "" if not found.eta_seconds else f", about {clock_time(found.eta_seconds)} left at that speed"
    click.echo(found.state)
    click.echo(f"shards: {found.shards_done} of {found.shards_total}")
    click.echo(f"rows: {about}{found.rows_done} of {found.rows_total} made{failed}")
    click.echo(f"audio: {about}{clock_time(found.audio_seconds)}, at {found.speed:.1f} x real time{eta}")
