"""`s3gen synth`, and what it and `resume` say of a finished job."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

import click

from jobs.command import (
    Context,
    command,
    config_argument,
    limit_option,
    manifest_option,
    options_of,
    overrides_of,
    set_option,
    storage_option,
)
from jobs.progress import clock_time, listed

if TYPE_CHECKING:
    from jobs.config import JobConfig
    from jobs.making import Outcome


@click.command()
@config_argument
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
    """Make a job's speech; again, go on with it.

    CONFIG is a YAML file; configs/local.yaml explains every key. A run on an output that is begun goes on with it, and
    refuses where a key has changed that another sound would follow from.

    With --limit a trial of the first rows goes to an output of its own, the configured one with -trial-N appended. It
    ends with the speed by which `s3gen plan` can say what the whole job will take.

    \b
    Examples:
      s3gen synth my_job.yaml --limit 20
      s3gen synth my_job.yaml
      s3gen synth my_job.yaml --set workers=auto --set engine.dtype=bfloat16
      s3gen synth my_job.yaml --manifest my_speech/failures.parquet --set output=my_speech-2

    \b
    Exit codes:
      0  every row was made
      1  not finished: the same command, or `s3gen resume`, goes on; or another run is alive on this output
      2  bad input or configuration, or a refused change: nothing was started or written
      3  finished, with rows in failures.parquet or doubled ids
    """
    from jobs.config import load_config
    from jobs.runs import synth as run
    from jobs.runs import trial_output

    job = load_config(config, overrides_of(changes, manifest), storage_options=options_of(storage_options))
    if limit is not None:
        click.echo(f"a trial of the first {limit} rows, in {trial_output(job.output, limit)}", err=True)
    outcome = run(job, limit, context.console)
    code = print_outcome(outcome)
    if limit is not None:
        _print_trial(job, outcome, config)
    return code


def _print_trial(job: JobConfig, outcome: Outcome, config: str) -> None:
    from jobs.trial import trial_of

    found = trial_of(job, outcome.output)
    if found is None:
        return
    click.echo(
        f"the trial's speed: {found.speed:.3g} x real time of one {found.unit}, over {found.seconds:.0f} s of work"
        f"{'; that is short, and the whole job, in fuller batches, may be faster' if found.is_short else ''}"
    )
    click.echo(f"to hear it: s3gen report {shlex.quote(outcome.output)}")
    click.echo(f"what the whole job would take: s3gen plan {shlex.quote(config)} --speed {found.speed:.3g}")


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
        reasons = listed(summary.errors)
        click.echo(f"failed: {summary.rows_failed} rows ({reasons}), each in {outcome.output}/failures.parquet")
    if summary.problems:
        click.echo(f"suspect: kept, but not past a check: {listed(summary.problems)} (see index.parquet)")
    if summary.duplicates:
        click.echo(f"doubled ids: {summary.duplicates} rows, listed in {outcome.output}/duplicates.parquet")
    if model.startswith("random:"):
        click.echo(
            f"The weights of {model} are random, so this is noise; with --set model=ResembleAI/chatterbox (downloads) "
            "or your own checkpoint, and voices made with the same model, it is speech."
        )
    return summary.exit_code
