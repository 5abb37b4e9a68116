"""`s3gen resume`."""

from __future__ import annotations

import click

from jobs.command import Context, command, options_of, set_option, storage_option
from jobs.commands.synth import print_outcome


@click.command()
@click.argument("output")
@set_option
@storage_option
@command
def resume(context: Context, output: str, changes: tuple[str, ...], storage_options: str | None) -> int:
    """Go on with a job that was stopped or has failed, from what its output records.

    --set may change workers, gpus_per_worker, ray_address, stall_seconds, storage_options, log_level and batch.
    """
    from jobs.runs import resume as run

    return print_outcome(run(output, list(changes), options_of(storage_options), context.console))
