"""`s3gen synth`, and what it and `resume` say of a finished job."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from jobs.command import (
    Context,
    command,
    limit_option,
    manifest_option,
    options_of,
    overrides_of,
    set_option,
    storage_option,
)
from jobs.progress import clock_time

if TYPE_CHECKING:
    from jobs.making import Outcome


@click.command()
@click.argument("config")
@set_option
@manifest_option
@limit_option
@storage_option
@command
def synth(
    context: Context,
    config: str,
    changes: tuple[str, ...],
    manifest: str | None,
    limit: int | None,
    storage_options: str | None,
) -> int:
    """Run the job of a configuration file, or go on with it.

    With --limit the trial goes to an output of its own: the configured one with -trial-N appended.
    """
    from jobs.config import load_config
    from jobs.runs import synth as run
    from jobs.runs import trial_output

    job = load_config(config, overrides_of(changes, manifest), storage_options=options_of(storage_options))
    if limit is not None:
        click.echo(f"a trial of the first {limit} rows, in {trial_output(job.output, limit)}", err=True)
    return print_outcome(run(job, limit, context.console))


def print_outcome(outcome: Outcome) -> int:
    summary, model = outcome.summary, outcome.model
    if not outcome.made_shards:
        click.echo("nothing was left to do: the job is finished")
    click.echo(
        f"{summary.rows_done} of {summary.rows_total} rows made, {clock_time(outcome.audio_seconds)} of audio "
        f"({outcome.audio_seconds:.1f} s), at {summary.speed:.1f} x real time"
    )
    click.echo(f"shards: {outcome.output}/audio/  ({summary.shards} by plan; where each row is: index.parquet)")
    if summary.rows_failed:
        click.echo(f"failed: {summary.rows_failed} rows, with their reasons in {outcome.output}/failures.parquet")
    if summary.duplicates:
        click.echo(f"doubled ids: {summary.duplicates} rows, listed in {outcome.output}/duplicates.parquet")
    if model.startswith("random:"):
        click.echo(
            f"The weights of {model} are random, so this is noise; with --set model=ResembleAI/chatterbox (downloads) "
            "or your own checkpoint, and voices made with the same model, it is speech."
        )
    return summary.exit_code
