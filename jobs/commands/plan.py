"""`s3gen plan`."""

from __future__ import annotations

import json
import math
import textwrap
from typing import TYPE_CHECKING, Any

import click

from jobs.command import FINISHED, Context, command, json_option
from jobs.given import Given, job_options
from jobs.progress import clock_time

if TYPE_CHECKING:
    from jobs.config.config import JobConfig
    from jobs.estimate.estimate import Bill, Estimate


class _Finite(click.FloatRange):
    """Its range lets `nan` pass."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        number: float = super().convert(value, param, ctx)
        if math.isnan(number):
            self.fail(f"{value} is not a number", param, ctx)
        return number


# Beyond these a slip is meant, and quotients overflow.
SPEED = _Finite(min=1e-6, max=1e9)
PRICE = _Finite(min=0, min_open=True, max=1e9)


@click.command()
@job_options
@click.option("--speed", type=SPEED, metavar="X", help="Measured x real time of one GPU (without GPUs: one worker).")
@click.option("--calibrate", is_flag=True, help="Measure it here, for about a minute.")
@click.option("--price", type=PRICE, metavar="P", help="Of a GPU for an hour, in any currency.")
@json_option
@command
def plan(
    context: Context, given: Given, speed: float | None, calibrate: bool, price: float | None, as_json: bool
) -> int:
    """Say what a job would take: rows, hours, disk, GPU-hours, cost. Writes nothing.

    Reads the manifest's footers and a sample of up to eight shards, and names what is wrong with the sample's rows. How
    long the job takes follows from a speed: one that you know, or one that --calibrate measures with the job's model,
    on the device that the job would use on this machine. Of a job that is begun it is what is left. Last come problems:
    another job in the output, or a local model that is not there. Hubs and URLs are not asked for the model, and it is
    not tried whether the output can be written.

    \b
    Examples:
      s3gen plan my_job.yaml
      s3gen plan my_job.yaml --calibrate --price 2.50
      s3gen plan my_job.yaml --speed 400 --set engine.prompt_seconds=3 --json

    \b
    Exit codes:
      0  it could answer, whatever the answer is
      1  no row of the sample could be made (--calibrate); or a store does not answer: ask again later
      2  bad input or configuration
    """
    _check_options(speed, price, calibrate=calibrate)
    from jobs.estimate.estimate import bill, estimate

    job = given.load()
    found = estimate(job, given.limit, calibrate=calibrate)
    costs = bill(job, found, speed, price)
    if as_json:
        click.echo(json.dumps({**found.as_dict(), **costs.as_dict()}))
    else:
        _print_estimate(found, job)
        _print_disk(found, job)
        _print_bill(found, costs)
        _print_problems(found)
    return FINISHED


def _check_options(speed: float | None, price: float | None, *, calibrate: bool) -> None:
    if speed is not None and calibrate:
        raise click.UsageError("--speed and --calibrate exclude each other: give a speed, or have it measured")
    if price is not None and speed is None and not calibrate:
        raise click.UsageError("--price needs a speed: give --calibrate, or --speed with what a trial showed")


def _print_estimate(found: Estimate, job: JobConfig) -> None:
    exact = found.sampled_rows == found.rows
    click.echo(f"rows: {found.rows} in {found.shards} shards")
    sample = "they use" if exact else f"a sample of {found.sampled_rows} rows uses"
    click.echo(f"voices: {found.voices} in the table, of which {sample} {found.sampled_voices}")
    lengths = ""
    if found.row_seconds:
        least, median, most = found.row_seconds
        lengths = f"; rows of {least:.1f} to {most:.1f} s, half of them above {median:.1f}"
    click.echo(f"audio: {'' if exact else 'about '}{found.audio_hours:.4g} hours{_untrimmed(job)}{lengths}")
    click.echo(
        f"batches of at most {found.max_frames} frames: {found.batches} of {'all rows' if exact else 'the sample'}"
    )
    shares = ", ".join(f"{share:.1%} in the {part}" for part, share in found.padding.items())
    click.echo(f"padding among what is computed: {shares}")
    if found.max_frames_assumed:
        click.echo(
            "  (assumed: with batch.max_frames auto the job finds its number when it begins, from its GPU's memory)"
        )
    click.echo(f"prompts: {found.prompt_share:.0%} of the flow's work (engine.prompt_seconds shortens them)")
    if found.sampled_cut:
        click.echo(f"rows {'' if exact else 'of the sample '}that will be cut into pieces: {found.sampled_cut}")
    if found.sampled_failures:
        click.echo(f"rows {'' if exact else 'of the sample '}that will fail: {sum(found.sampled_failures.values())}")
        for code, count in sorted(found.sampled_failures.items(), key=lambda item: -item[1]):
            click.echo(f"  {code}: {count}, such as {found.examples[code]}")


def _untrimmed(job: JobConfig) -> str:
    """Behind amounts of audio: how much is silence at its ends is not known before it is made."""
    return "" if job.wave.trim_db is None else " before trimming"


def _print_disk(found: Estimate, job: JobConfig) -> None:
    click.echo(f"disk{_untrimmed(job)}, about:")
    for shards, by_audio in found.disk_bytes.items():
        sizes = [
            f"{_size(size)} as {audio}{' (this job)' if (shards, audio) == (job.format, job.audio) else ''}"
            for audio, size in by_audio.items()
        ]
        click.echo(f"  {shards}: {', '.join(sizes)}")
    origin = "as for recorded speech; --calibrate measures it"
    if found.measured:
        origin = "measured, of the noise that random weights make" if job.model.startswith("random:") else "measured"
    click.echo(f"  (flac at {found.flac_share:.0%} of wav, {origin})")


def _size(count: int) -> str:
    value, units = float(count), ["B", "kB", "MB", "GB", "TB"]
    while value >= 1_000 and len(units) > 1:
        value /= 1_000
        units.pop(0)
    return f"{value:.3g} {units[0]}"


def _print_bill(found: Estimate, costs: Bill) -> None:
    unit = "GPU" if found.on_gpu else "worker"
    if found.is_begun:
        click.echo(f"begun: {found.rows_left} rows are left, and what follows is for these")
    if (made := found.measured) is not None:
        rows = "one row" if made.rows == 1 else f"{made.rows} rows"
        click.echo(f"speed: {made.x_real_time:.4g} x real time, by {rows} in {made.seconds:.1f} s on {made.device}")
    if costs.gpu_hours is None:
        click.echo(f"{unit}-hours: give --calibrate, or --speed with what a trial (synth --limit) showed on one {unit}")
        return
    click.echo(f"{unit}-hours: {costs.gpu_hours:.4g}")
    if costs.hours is not None:
        click.echo(f"time: {clock_time(3600 * costs.hours)} on {costs.gpus:g} {unit}{'' if costs.gpus == 1 else 's'}")
    if costs.cost is not None:
        click.echo(f"cost: {costs.cost:.4g}")


def _print_problems(found: Estimate) -> None:
    if found.problems:
        click.echo("problems, for which synth would refuse the job:")
    for problem in found.problems:
        click.echo(textwrap.indent(problem, "  "))
