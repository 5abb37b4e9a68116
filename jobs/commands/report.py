"""`s3gen report`."""

from __future__ import annotations

import click

from jobs.command import FINISHED, Context, command, files, options_of, output_argument, storage_option


@click.command()
@output_argument
@click.option(
    "--out", metavar="FILE", shell_complete=files, help="Where to write the page; without: report.html in OUTPUT."
)
@storage_option
@command
def report(context: Context, output: str, out: str | None, storage_options: str | None) -> int:
    """Show a job on one HTML page: its voices, numbers, failures.

    The page holds everything it shows, under 10 MB, and opens from disk without a network: players and mel spectrograms
    of a row of each voice and of the rows furthest beyond the checks; audio of each voice; durations, loudness and
    speed; failures by reason; the course of the run. A job that is not finished has one, too.

    \b
    Examples:
      s3gen report build/demo/speech
      s3gen report s3://bucket/speech --out speech.html

    \b
    Exit codes:
      0  the page is written
      1  something that was committed is gone or damaged (s3gen verify tells what); or a store does not answer: ask
         again later
      2  no such job, or no right to read it or to write the page
    """
    from jobs.report.report import write_report
    from jobs.report.words import size

    written = write_report(output, options_of(storage_options), out=out)
    click.echo(f"{written.url}  ({size(written.bytes)})")
    return FINISHED
