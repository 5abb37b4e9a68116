"""The command `s3gen`."""

from __future__ import annotations

from importlib.metadata import version

import click

from jobs.commands import plan, resume, status, synth, verify, voices


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(version("s3gen"), prog_name="s3gen")
def main() -> None:
    """Speech tokens and voices in, sharded 24 kHz audio out."""


for module in (plan, resume, status, synth, verify, voices):
    main.add_command(getattr(module, module.__name__.rpartition(".")[2]))
