"""`s3gen plan`."""

from __future__ import annotations

import json
from collections import Counter
from typing import TYPE_CHECKING

import click

from jobs.command import (
    FINISHED,
    Context,
    command,
    json_option,
    limit_option,
    manifest_option,
    options_of,
    overrides_of,
    set_option,
    storage_option,
)

if TYPE_CHECKING:
    from jobs.estimate import Estimate


@click.command()
@click.argument("config")
@set_option
@manifest_option
@limit_option
@click.option("--speed", type=click.FloatRange(min=0, min_open=True), help="Measured x real time of one GPU.")
@json_option
@storage_option
@command
def plan(
    context: Context,
    config: str,
    changes: tuple[str, ...],
    manifest: str | None,
    limit: int | None,
    speed: float | None,
    as_json: bool,
    storage_options: str | None,
) -> int:
    """Say what a job would take; writes nothing.

    Reads footers and a sample of up to eight shards. GPU-hours are only given for a --speed that you have measured,
    such as the speed of a trial (synth --limit).
    """
    from jobs.config import load_config
    from jobs.estimate import estimate

    job = load_config(config, overrides_of(changes, manifest), storage_options=options_of(storage_options))
    found = estimate(job, limit)
    gpu_hours = None if speed is None else found.audio_hours / speed
    if as_json:
        click.echo(json.dumps({**found.as_dict(), "gpu_hours": gpu_hours}))
    else:
        _print_estimate(found, gpu_hours)
    return FINISHED


def _print_estimate(found: Estimate, gpu_hours: float | None) -> None:
    exact = found.sampled_rows == found.rows
    click.echo(f"rows: {found.rows} in {found.shards} shards")
    click.echo(f"audio: {'' if exact else 'about '}{found.audio_hours:.4g} hours")
    click.echo(
        f"batches of at most {found.max_frames} frames: {found.batches} "
        f"of {'all rows' if exact else f'a sample of {found.sampled_rows} rows'}"
    )
    shares = ", ".join(f"{share:.1%} in the {part}" for part, share in found.padding.items())
    click.echo(f"padding among what is computed: {shares}")
    if found.max_frames_assumed:
        click.echo(
            "  (assumed: with batch.max_frames auto the job finds its number when it begins, from its GPU's memory)"
        )
    if found.sampled_failures:
        reasons = ", ".join(f"{code} {count}" for code, count in Counter(found.sampled_failures).most_common())
        click.echo(f"rows {'' if exact else 'of the sample '}that will fail: {reasons}")
    if gpu_hours is None:
        click.echo("GPU-hours: give --speed, the x real time that a trial (synth --limit) showed on one GPU")
    else:
        click.echo(f"GPU-hours: {gpu_hours:.4g}")
