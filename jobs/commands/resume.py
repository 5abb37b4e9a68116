"""`s3gen resume`."""

from __future__ import annotations

import click

from jobs.command import Context, command, options_of, output_argument, set_option, storage_option
from jobs.commands.synth import print_outcome
from jobs.commands.tokenize import print_tokens


@click.command()
@output_argument
@set_option
@click.option(
    "--retry-failed",
    is_flag=True,
    help="Then take up the failed rows again that crashed or failed the checks of their audio, once.",
)
@storage_option
@command
def resume(
    context: Context, output: str, changes: tuple[str, ...], retry_failed: bool, storage_options: str | None
) -> int:
    """Go on with a job, from what its output records.

    What is committed stays and is not made again. --set may change workers, gpus_per_worker, ray_address,
    stall_seconds, storage_options, log_level and batch; any other change would be another job. Nothing is done where
    the job is finished, but for --retry-failed: rows that failed of a crash, a hang, too little memory, an error of the
    model or bad audio are tried again, the latter with another seed. Other failures would only repeat themselves.
    Killed under way and given again, the command goes on with these rows and takes up no others.

    \b
    Examples:
      s3gen resume my_speech
      s3gen resume my_speech --retry-failed
      s3gen resume s3://bucket/speech --set workers=8 --set ray_address=auto

    \b
    Exit codes:
      0  every row was made
      1  not finished: resume it again; or another run is alive on this output
      2  no such job, or a refused change: nothing was started or written
      3  finished, with rows in failures.parquet or doubled ids
    """
    from jobs.retry import mendable
    from jobs.runs import resume as run

    outcome = run(output, list(changes), options_of(storage_options), context.console, retry_failed=retry_failed)
    kind = "synth" if outcome.table is None else "tokenize"
    if retry_failed and not outcome.made_shards and not mendable(outcome.summary, kind):
        click.echo("no row is to be tried again: none has failed of what another try may mend")
    return print_outcome(outcome) if outcome.table is None else print_tokens(outcome)
