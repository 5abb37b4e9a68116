"""`s3gen verify`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from jobs.command import SHOWN_ITEMS, Context, command, options_of, storage_option

if TYPE_CHECKING:
    from jobs.verify import Verification


@click.command()
@click.argument("output")
@storage_option
@command
def verify(context: Context, output: str, storage_options: str | None) -> int:
    """Read everything that was made again: each row once, decodes, right length, checksums."""
    from jobs.verify import verify as read

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
    click.echo(f"{verdict}; {found.shards_checked} of {found.shards_total} shards, {found.rows_checked} clips decoded")
