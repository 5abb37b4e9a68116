"""The command `s3gen`. Each command is a module of its name in `jobs.commands`, imported when it is asked for."""

from __future__ import annotations

import difflib
import sys
import traceback
from importlib import import_module
from typing import Any

import click
from click.shell_completion import add_completion_class

from jobs.completion import SHELLS

# In the order in which a data set needs them.
COMMANDS = (
    "voices",
    "tokenize",
    "plan",
    "synth",
    "submit",
    "status",
    "resume",
    "verify",
    "report",
    "convert",
    "completion",
)


class Commands(click.Group):
    """The commands, with help for a mistyped name, and an error instead of a traceback where one cannot be imported."""

    def main(self, *args: Any, **kwargs: Any) -> Any:
        """Runs; knows how to complete lines."""
        for shell in SHELLS.values():
            add_completion_class(shell)
        return super().main(*args, **kwargs)

    def list_commands(self, ctx: click.Context) -> list[str]:
        """In their order of use."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Imports the command."""
        if cmd_name not in COMMANDS:
            return None
        try:
            module = import_module(f"jobs.commands.{cmd_name}")
        except Exception as error:  # a broken installation can raise anything
            return _unusable(cmd_name, error)
        command: click.Command = getattr(module, cmd_name)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Finds the command that the first argument names."""
        name = args[0]
        if name not in COMMANDS and not name.startswith("-") and not ctx.resilient_parsing:
            close = difflib.get_close_matches(name, COMMANDS, n=1)
            way_out = f"did you mean {close[0]}?" if close else f"the commands are {', '.join(COMMANDS)}"
            raise click.UsageError(f"No such command {name[:100]!r}; {way_out}", ctx)
        return super().resolve_command(ctx, args)


def _unusable(name: str, error: Exception) -> click.Command:
    """What stands for a command whose import failed: the others, and the help, work all the same."""
    reason = f"cannot be loaded: {type(error).__name__}: {error}"

    def refuse() -> None:
        context = click.get_current_context()
        if "--debug" in context.args or context.find_root().params["debug"]:
            traceback.print_exception(error)
        click.echo(f"error: {name} {reason}; is s3gen installed as README.md says? (--debug shows where)", err=True)
        sys.exit(1)

    anything = {"ignore_unknown_options": True, "allow_extra_args": True, "help_option_names": []}
    return click.Command(name, context_settings=anything, callback=refuse, help=f"({reason})")


def _print_versions(ctx: click.Context, param: click.Parameter, wanted: bool) -> None:
    if wanted and not ctx.resilient_parsing:
        from jobs.versions import version_lines

        click.echo("\n".join(version_lines()))
        ctx.exit()


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_print_versions,
    help="Show the versions of s3gen, Python, torch, CUDA and Ray, and the GPUs.",
)
@click.option("--debug", is_flag=True, help="Show tracebacks; works behind a command, too.")
def main(debug: bool) -> None:
    """Speech tokens and voices in, sharded 24 kHz audio out.

    \b
    From clips and tokens to speech:
      s3gen voices my_clips --out my_voices.parquet --model ResembleAI/chatterbox
      s3gen plan my_job.yaml                what it would take; writes nothing
      s3gen synth my_job.yaml --limit 20    a trial, to hear before paying
      s3gen synth my_job.yaml               the whole job; again, it goes on
      s3gen status my_speech                how far it is, from anywhere
      s3gen report my_speech                a page to hear and see it

    configs/local.yaml explains every key of a configuration. The help of each command, s3gen COMMAND --help, has
    examples and says what its exit codes mean.
    """
