"""`s3gen voices`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from jobs.command import (
    FINISHED,
    REPORTED,
    SHOWN_ITEMS,
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
from jobs.config.plain_yaml import legible
from jobs.progress import clock_time

if TYPE_CHECKING:
    from jobs.voices.build import BuildReport


@click.command()
@source_argument
@out_option("The voice table, a Parquet file.")
@model_option("Whose speech the voices are for")
@model_file_option
@click.option("--append", is_flag=True, help="Add to the table, but for clips that it has.")
@click.option("--workers", type=click.IntRange(min=1), default=1, show_default=True, help="Above 1: on Ray.")
@address_option
@click.option("--max-seconds", type=float, help="Cut clips here.  [default: 10, or the table's with --append]")
@click.option(
    "--loudness", type=float, metavar="LUFS", help="Bring clips to this, such as -27.  [default: as they are]"
)
@storage_option
@command
def voices(context: Context, source: str, storage_options: str | None, **order: Any) -> int:
    """Make a voice table from reference clips.

    INPUT is a folder of audio files (voice ids are their paths without suffix), or a .csv, .jsonl or .parquet file with
    the columns voice_id and path. Clips that cannot become a voice are listed, and written to URL.failures.parquet.
    Stopped, the same command goes on where it was.

    With --append the table is another one: jobs that are begun with it refuse it afterwards. Append to a copy, and give
    new jobs that one.

    \b
    Examples:
      s3gen voices my_clips --out my_voices.parquet --model ResembleAI/chatterbox
      s3gen voices more_clips.csv --out a_copy.parquet --model ResembleAI/chatterbox --append
      s3gen voices s3://bucket/clips --out s3://bucket/voices.parquet --model ./checkpoint --workers 4

    \b
    Exit codes:
      0  every clip became a voice
      1  stopped, or a store does not answer: the same command goes on
      2  bad input: no clips or model, or no right to read them; or another model's table
      3  finished, with clips that did not become voices
    """
    from jobs.voices.runs import VoicesOrder, make_voices

    report = make_voices(VoicesOrder(source=source, options=options_of(storage_options), **order), context.console)
    _print_voices(report)
    return REPORTED if report.failures else FINISHED


def _print_voices(report: BuildReport) -> None:
    kept = f", {report.kept} were there already" if report.kept else ""
    click.echo(
        f"{report.voices} voices from {clock_time(report.seconds)} of audio{kept}; {report.total} in {report.url}"
    )
    if report.failures:
        click.echo(f"{len(report.failures)} clips did not become voices, see {report.failures_url}:")
    for failure in report.failures[:SHOWN_ITEMS]:
        name = legible(failure.voice_id or failure.source or "a clip")
        click.echo(f"  {name}: {failure.error}: {legible(failure.message)}")
    if len(report.failures) > SHOWN_ITEMS:
        click.echo(f"  and {len(report.failures) - SHOWN_ITEMS} more")
