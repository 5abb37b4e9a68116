"""`s3gen synth`, and what it and `resume` say of a finished job."""

from __future__ import annotations

import os
import shlex
from typing import TYPE_CHECKING

import click

from jobs.command import PLAN_COMMAND, Context, command
from jobs.given import Given, job_options
from jobs.progress import clock_time, listed

if TYPE_CHECKING:
    from jobs.config.config import JobConfig
    from jobs.making import Outcome


@click.command()
@job_options
@command
def synth(context: Context, given: Given) -> int:
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
    from jobs.runs import synth as run
    from jobs.trial import trial_output

    job = given.load()
    if given.limit is not None:
        click.echo(f"a trial of the first {given.limit} rows, in {trial_output(job.output, given.limit)}", err=True)
    outcome = run(job, given.limit, context.console)
    code = print_outcome(outcome)
    if given.limit is not None:
        _print_trial(job, outcome, given)
    return code


def _print_trial(job: JobConfig, outcome: Outcome, given: Given) -> None:
    from jobs.estimate.estimate import uses_gpus
    from jobs.trial import trial_of

    found = trial_of(job, outcome.output)
    if found is None:
        return
    click.echo(
        f"the trial's speed: {found.speed:.3g} x real time of one {found.unit}, over {found.seconds:.0f} s of work"
        f"{'; that is short, and the whole job, in fuller batches, may be faster' if found.is_short else ''}"
    )
    click.echo(f"to hear it: {shlex.join(['s3gen', 'report', outcome.output, *given.options()])}")
    speed = ["--speed", f"{found.speed:.3g}"]
    if found.unit == "worker" and uses_gpus(job):
        # A plan does not ask a cluster and would take the speed for a GPU's.
        speed += ["--set", "engine.device=cpu"]
    # What was packed is not what was submitted.
    plan = os.environ.get(PLAN_COMMAND)
    click.echo(
        f"what the whole job would take: {f'{plan} {shlex.join(speed)}' if plan else given.again('plan', *speed)}"
    )


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
