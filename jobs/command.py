"""What all commands share: errors and exit codes, signals, the log, options.

Exit codes of `synth` and `resume`: 0 every row synthesised; 3 finished, with rows in the failures table; 1 not
finished, or another run is alive on the output; 2 bad input or configuration, a refused change, no such output: nothing
was started or written. `voices`: 0, or 3 with clips reported. `verify`: 0 whole, 1 damage. Others: 0. `tokenize` and
`submit` are as `synth`. They are of the work: that what is said of it cannot be written changes none of them.

Of stores, whatever is asked of them: 2 where trying again does not mend it (no credentials, no rights, no such bucket)
and nothing is begun, 1 where one does not answer; see `jobs.storage.faults.as_input`.

Each command imports what it needs when it runs: `s3gen status` has no use for Ray.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import wraps
from types import FrameType
from typing import TYPE_CHECKING, Any, NoReturn

import click
from click.shell_completion import CompletionItem
from rich.console import Console

from jobs.errors import JobError
from jobs.progress import ConsoleHandler, tame
from jobs.stop import heeded
from jobs.streams import lasting_streams, unprinted

if TYPE_CHECKING:
    from jobs.storage.urls import Options

FINISHED, UNFINISHED, BAD_INPUT, REPORTED = 0, 1, 2, 3
SHOWN_ITEMS = 20  # of a long list
STOPPED = "stopped before it had finished; what is committed stays, the same command goes on"
# An environment variable: the submitter's own `s3gen plan`, for the end of a trial that knows only what was packed.
PLAN_COMMAND = "S3GEN_PLAN"

Command = Callable[..., Any]


@dataclass(frozen=True, slots=True)
class Context:
    """What a command may use beside its arguments."""

    console: Console  # stderr: progress, log and errors; results go to stdout


def command(function: Command) -> Command:
    """Errors as one message and an exit code; a traceback only with --debug."""

    @wraps(function)
    def run(*args: Any, debug: bool, **kwargs: Any) -> None:
        debug = debug or bool(click.get_current_context().find_root().params.get("debug"))
        with lasting_streams():
            console = Console(stderr=True)
            try:
                with _signals(), _logging(console):
                    code = function(Context(console), *args, **kwargs)
            except KeyboardInterrupt:
                _fail(STOPPED, UNFINISHED, debug)
            except click.ClickException:
                raise  # wrong options: click shows these, with the command's usage
            except JobError as error:
                _fail(str(error), error.exit_code, debug)
            except Exception as error:
                hint = "" if debug else " (--debug shows where)"
                _fail(f"{type(error).__name__}: {error}{hint}", UNFINISHED, debug)
            _say_what_is_unprinted()
            sys.exit(code)

    return click.option("--debug", is_flag=True, help="Show tracebacks.")(run)


def _fail(message: str, code: int, debug: bool) -> NoReturn:
    if debug:
        traceback.print_exc()
    click.echo(f"error: {tame(message)}", err=True)
    sys.exit(code)


def _say_what_is_unprinted() -> None:
    failure = unprinted()
    if failure is not None and not isinstance(failure, BrokenPipeError):  # whoever leaves a pipe has read enough
        click.echo(f"warning: not all of the result could be printed: {failure.strerror}", err=True)


def print_part(text: str) -> None:
    """Prints a part of something that goes on, without an end of line.

    Raises:
        OSError: nobody reads it, or there is no room for it.
    """
    click.echo(text, nl=False)
    if failure := unprinted():
        raise failure


@contextlib.contextmanager
def _signals() -> Iterator[None]:
    """SIGTERM and SIGHUP unwind a command as Ctrl-C does: leases are released, temporary files go."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = {number: signal.signal(number, interrupt) for number in heeded(signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def _logging(console: Console) -> Iterator[None]:
    log, handler = logging.getLogger("jobs"), ConsoleHandler(console)
    log.addHandler(handler)
    log.setLevel(logging.INFO)  # until a configuration says otherwise
    log.propagate = False
    try:
        yield
    finally:
        log.removeHandler(handler)
        log.propagate = True


def options_of(path: str | None) -> Options:
    """The storage options of a file, or none."""
    from jobs.config.config import load_storage_options

    return {} if path is None else load_storage_options(path)


def files(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem[str]]:
    """A shell completes a path."""
    return [CompletionItem(incomplete, type="file")]


def folders(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem[str]]:
    """A shell completes the path of a folder."""
    return [CompletionItem(incomplete, type="dir")]


def _output(ctx: click.Context, param: click.Parameter, value: str) -> str:
    if os.path.isfile(value):
        raise click.BadParameter(
            f"{value!r} is a file; give the folder that the job writes to, its key output", ctx, param
        )
    return value


def _settings(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem[str]]:
    from jobs.changes import MAY_CHANGE
    from jobs.completion import settings
    from jobs.config.refusals import SECRET_KEYS

    return settings(incomplete, (*MAY_CHANGE, *SECRET_KEYS) if ctx.info_name == "resume" else None)


config_argument = click.argument("config", shell_complete=files)
output_argument = click.argument("output", shell_complete=folders, callback=_output)
storage_option = click.option(
    "--storage-options",
    metavar="FILE",
    shell_complete=files,
    help="YAML or JSON with options for the storage (fsspec's), such as keys.",
)
set_option = click.option(
    "--set",
    "changes",
    multiple=True,
    metavar="KEY=VALUE",
    shell_complete=_settings,
    help="Change a configuration key; dotted keys reach down: --set engine.dtype=bfloat16.",
)
manifest_option = click.option(
    "--manifest", metavar="M", shell_complete=files, help="Short for --set manifest=M: a path, glob or URL of Parquet."
)
limit_option = click.option("--limit", type=click.IntRange(min=1), metavar="N", help="A trial of the first N rows.")
source_argument = click.argument("source", metavar="INPUT", shell_complete=files)
model_file_option = click.option(
    "--model-file", metavar="FILE", help="Which checkpoint of a folder that holds several."
)
address_option = click.option("--ray-address", metavar="A", help="A Ray cluster; without, this machine.")
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON alone.")


def out_option(what: str) -> Callable[[Command], Command]:
    """`--out`, of a command that makes one file."""
    return click.option("--out", required=True, metavar="URL", shell_complete=files, help=what)


def model_option(what: str) -> Callable[[Command], Command]:
    """`--model`, of a command that reads no configuration."""
    names = "hub id, folder, file, URL, or random:tiny"
    return click.option("--model", required=True, metavar="M", shell_complete=files, help=f"{what}: {names}.")


def overrides_of(changes: tuple[str, ...], manifest: str | None) -> list[str]:
    """All changes of a configuration, as ``--set`` takes them."""
    # As JSON, which is YAML too: a path is a text whatever it looks like.
    return [*changes, *([] if manifest is None else [f"manifest={json.dumps(manifest)}"])]
