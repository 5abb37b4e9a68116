"""`s3gen tokenize`, and what it and `resume` say of a finished job of tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from jobs.command import (
    Context,
    address_option,
    command,
    model_file_option,
    model_option,
    options_of,
    out_option,
    source_argument,
    storage_option,
)
from jobs.progress import clock_time

if TYPE_CHECKING:
    from jobs.making import Outcome


@click.command()
@source_argument
@out_option("The token manifest, a Parquet file.")
@model_option("Whose tokenizer to use")
@model_file_option
@click.option("--voice", metavar="ID", help="The voice_id of all rows.  [default: each row's own, else its id]")
@click.option("--workers", default="1", show_default=True, metavar="N|auto", help="Processes, each with a model.")
@address_option
@click.option(
    "--shard-rows",
    type=click.IntRange(1, 1_000_000),
    default=512,
    show_default=True,
    metavar="N",
    help="Recordings that are committed together.",
)
@storage_option
@command
def tokenize(context: Context, source: str, workers: str, storage_options: str | None, **settings: Any) -> int:
    """Make a manifest of speech tokens from recordings.

    With it `synth` says the same in another voice.

    INPUT is a folder or glob of audio files (ids are their paths without suffix), a .csv, .jsonl or .parquet list with
    the columns path and id (or voice_id), tar shards as WebDataset has them, or Parquet files with a column audio, such
    as the shards of synth. Files and folders whose names begin with a dot or an underscore are left out. The
    manifest has id, voice_id, tokens, audio_seconds, and the input's other columns, but not where recordings lie.

    The job is kept in URL.job, and what could not be tokenized in URL.job/failures.parquet, which is itself an INPUT
    where it has a path. Stopped, the same command goes on with it, and so does s3gen resume URL.job; with
    --retry-failed that takes up what a crash or too little memory has cost.

    Recordings of over 30 seconds are tokenized in windows, and lose nothing where these meet; those of over half an
    hour have to be cut. Note that synth takes rows of up to max_tokens, 60 seconds unless it is told otherwise.

    \b
    Examples:
      s3gen tokenize my_clips --out tokens.parquet --model ResembleAI/chatterbox
      s3gen tokenize my_speech --out tokens.parquet --model ResembleAI/chatterbox --voice en-us
      s3gen tokenize 's3://bucket/shards/*.tar' --out s3://bucket/tokens.parquet --model ./checkpoint --workers auto

    \b
    Exit codes:
      0  every recording was tokenized
      1  not finished: the same command goes on; or another run is alive on this job
      2  bad input or a refused change: nothing was started or written
      3  finished, with rows in URL.job/failures.parquet or doubled ids
    """
    from jobs.config.config import checked
    from jobs.tokenize.config import TokenizeConfig
    from jobs.tokenize.runs import tokenize as run

    values = {"input": source, "workers": int(workers) if workers.isdecimal() else workers, **settings}
    config = checked(TokenizeConfig, values, storage_options=options_of(storage_options))
    return print_tokens(run(config, context.console))


def print_tokens(outcome: Outcome) -> int:
    summary = outcome.summary
    if not outcome.made_shards:
        click.echo("nothing was left to do: the job is finished")
    click.echo(
        f"{summary.rows_done} of {summary.rows_total} recordings tokenized, {clock_time(outcome.audio_seconds)} of "
        f"audio ({outcome.audio_seconds:.1f} s), at {summary.speed:.1f} x real time"
    )
    click.echo(f"tokens: {outcome.table}, a manifest for s3gen synth")
    if summary.rows_failed:
        click.echo(f"failed: {summary.rows_failed} rows, with their reasons in {outcome.output}/failures.parquet")
    if summary.duplicates:
        click.echo(f"doubled ids: {summary.duplicates} rows, listed in {outcome.output}/duplicates.parquet")
    if outcome.model.startswith("random:"):
        click.echo(f"The weights of {outcome.model} are random, and so are these tokens; give a real model for speech.")
    return summary.exit_code
