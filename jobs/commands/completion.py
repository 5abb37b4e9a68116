"""`s3gen completion`."""

from __future__ import annotations

import click

from jobs.command import FINISHED, Context, command
from jobs.completion import SHELLS


@click.command()
@click.argument("shell", type=click.Choice(list(SHELLS)))
@command
def completion(context: Context, shell: str) -> int:
    """Print the script that makes a shell complete s3gen's lines.

    It completes commands, options, files, and for --set every key of a configuration with its choices. A new shell has
    it once the script lies where the shell looks, or is evaluated when it starts.

    \b
    Examples:
      s3gen completion bash > ~/.local/share/bash-completion/completions/s3gen
      s3gen completion zsh > ~/.zfunc/_s3gen     (a folder of your fpath)
      s3gen completion fish > ~/.config/fish/completions/s3gen.fish
      eval "$(s3gen completion bash)"            (in ~/.bashrc, instead)
    """
    click.echo(SHELLS[shell].source_template, nl=False)
    return FINISHED
