"""`s3gen resume`."""

from __future__ import annotations

import click

from jobs.command import Context, command, options_of, output_argument, set_option, storage_option
from jobs.commands.synth import print_outcome


@click.command()
@output_argument
@set_option
@storage_option
@command
def resume(context: Context, output: str, changes: tuple[str, ...], storage_options: str | None) -> int:
    """Go on with a job, from what its output records.

    What is committed stays and is not made again. --set may change workers, gpus_per_worker, ray_address,
    stall_seconds, storage_options, log_level and batch; any other change would be another job. Nothing is done where
    the job is finished.

    \b
    Examples:
      s3gen resume my_speech
      s3gen resume s3://bucket/speech --set workers=8 --set ray_address=auto

    \b
    Exit codes:
      0  every row was made
      1  not finished: resume it again; or another run is alive on this output
      2  no such job, or a refused change: nothing was started or written
      3  finished, with rows in failures.parquet or doubled ids
    """
    from jobs.runs import resume as run

    return print_outcome(run(output, list(changes), options_of(storage_options), context.console))
