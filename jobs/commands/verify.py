"""`s3gen verify`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from jobs.command import SHOWN_ITEMS, Context, command, options_of, output_argument, storage_option

if TYPE_CHECKING:
    from jobs.verify.findings import Verification


@click.command()
@output_argument
@storage_option
@command
def verify(context: Context, output: str, storage_options: str | None) -> int:
    """Read everything again: each row once, checksums, lengths.

    Every clip is decoded. A job that is not finished is checked as far as it is. Of a job of `s3gen tokenize`, whose
    OUTPUT is URL.job, every row's tokens are read.

    \b
    Examples:
      s3gen verify my_speech
      s3gen verify s3://bucket/speech --storage-options keys.yaml
      s3gen verify my_tokens.parquet.job

    \b
    Exit codes:
      0  what is there is whole; rows that failed are no fault
      1  damage, which is listed; or the store does not answer, and the error says so: ask again later
      2  there is no job, or no right to read it
    """
    from jobs.verify.verify import verify as read

    found = read(output, options_of(storage_options))
    _print_verification(found)
    return found.exit_code


def _print_verification(found: Verification) -> None:
    for finding in found.findings[:SHOWN_ITEMS]:
        click.echo(f"{finding.where}: {finding.code}: {finding.message}")
    if found.damage > SHOWN_ITEMS:
        click.echo(f"and {found.damage - SHOWN_ITEMS} more")
    for note in found.notes:
        click.echo(f"note: {note}")
    verdict = f"DAMAGED: {found.damage} findings" if found.damage else "whole"
    click.echo(
        f"{verdict}; {found.shards_checked} of {found.shards_total} shards, {found.rows_checked} {found.looked_at}"
    )
