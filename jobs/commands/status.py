"""`s3gen status`."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

import click
from rich.console import Console
from rich.live import Live
from rich.text import Text

from jobs.command import FINISHED, Context, command, json_option, options_of, output_argument, storage_option
from jobs.progress import LINE_REASONS, clock_time, listed, say
from jobs.streams import unprinted

if TYPE_CHECKING:
    from collections.abc import Callable

    from jobs.status import Observer, Status
    from jobs.storage.urls import Options

AWAIT_SECONDS, LOOK_SECONDS = 600, 5  # for a job to be begun, and between two looks
WATCH_SECONDS, LEAST_SECONDS, MOST_SECONDS = 5.0, 0.5, 86_400.0


def _seconds(context: click.Context, parameter: click.Parameter, value: str | None) -> float | None:
    """Of --watch. They may be left out, so whatever stands behind the option is taken for them."""
    if value is None:
        return None
    try:
        seconds = float(value)
    except ValueError:
        raise click.BadParameter(f"{value!r} is not a number of seconds; give OUTPUT first, then --watch") from None
    if not LEAST_SECONDS <= seconds <= MOST_SECONDS:
        raise click.BadParameter(f"{value} is not between {LEAST_SECONDS:g} and {MOST_SECONDS:g} seconds")
    return seconds


@click.command()
@output_argument
@json_option
@click.option(
    "--watch",
    is_flag=False,
    flag_value=str(WATCH_SECONDS),
    callback=_seconds,
    metavar="[SECONDS]",
    help=f"Look again every so many seconds ({WATCH_SECONDS:g}), until the job is finished or stopped.",
)
@storage_option
@command
def status(context: Context, output: str, as_json: bool, watch: float | None, storage_options: str | None) -> int:
    """Say how far a job is, from its output alone.

    While it runs and after, from any machine. Rows count when their shard is committed. Of more than 4,096 shards so
    many are looked at: what is then said of failures, audio and speed is about right. With --watch it is said again and
    again, until the job is finished or nobody works on it; Ctrl-C ends the watching, and nothing else. A job that is
    yet to begin is waited for, ten minutes at most.

    \b
    Examples:
      s3gen status my_speech
      s3gen status s3://bucket/speech --watch
      s3gen status my_speech --watch 60 --json

    \b
    Exit codes:
      0  it could answer, whatever the state is
      1  the store does not answer: ask again later; or a file of the job is damaged (s3gen verify tells what)
      2  no such job, or no right to read it; with --watch: none for ten minutes
    """
    from jobs.status import Observer

    options = options_of(storage_options)
    if watch is None:
        found = Observer(output, options).look()
        click.echo(json.dumps(found.as_dict()) if as_json else "\n".join(_lines(found)))
        return FINISHED
    with suppress(KeyboardInterrupt):  # ends the watching, and nothing else
        _await(output, options, context.console)
        _watch(Observer(output, options), watch, as_json)
    return FINISHED


def _await(output: str, options: Options, console: Console) -> None:
    """Returns when a job is there, or none has come for long: a run writes nothing before its model is loaded."""
    from jobs.status import is_begun

    for waited in range(0, AWAIT_SECONDS, LOOK_SECONDS):
        if is_begun(output, options):
            return
        if not waited:
            say(console, f"{output}: no job was begun here yet; waiting up to {clock_time(AWAIT_SECONDS)} for one")
        time.sleep(LOOK_SECONDS)


def _watch(observer: Observer, seconds: float, as_json: bool) -> None:
    """Shows a job until it is finished or stopped, or nobody reads on."""
    with _showing(as_json) as show:
        while True:
            found = observer.look()
            show(found)
            if found.state != "running" or unprinted():
                return
            time.sleep(seconds)


@contextmanager
def _showing(as_json: bool) -> Iterator[Callable[[Status], None]]:
    from jobs.live import can_redraw

    console = Console()
    if as_json:
        yield lambda found: click.echo(json.dumps(found.as_dict()))
    elif not can_redraw(console):
        yield lambda found: say(console, _line(found))
    else:
        with Live(console=console, auto_refresh=False) as live:
            yield lambda found: live.update(Text("\n".join(_lines(found))), refresh=True)


def _lines(found: Status) -> list[str]:
    """A job in some lines."""
    about = "about " if found.estimated else ""
    failed = f", {about}{found.rows_failed} failed" if found.rows_failed else ""
    eta = "" if not found.eta_seconds else f", about {clock_time(found.eta_seconds)} left at that speed"
    lines = [
        found.state,
        f"shards: {found.shards_done} of {found.shards_total}",
        f"rows: {about}{found.rows_done} of {found.rows_total} made{failed}",
        f"audio: {about}{clock_time(found.audio_seconds)}, at {found.speed:.1f} x real time{eta}",
    ]
    if found.padding:
        lines.append(f"padding: {found.padding:.1%} of what the vocoder computed")
    if found.errors:
        lines.append(f"failed: {about}{listed(found.errors)}")
    if found.problems:
        lines.append(f"suspect: kept, but not past a check: {about}{listed(found.problems)}")
    if found.retries:
        lines.append(f"retries: {about}{found.retries} times a shard was handed out again")
    return lines


def _line(found: Status) -> str:
    """A job in one line."""
    about = "about " if found.estimated else ""
    failed = f", {about}{found.rows_failed} failed ({listed(found.errors, LINE_REASONS)})" if found.rows_failed else ""
    rows = f"{found.state}: {about}{found.rows_done + found.rows_failed}/{found.rows_total} rows{failed}"
    eta = "" if not found.eta_seconds else f", ETA {clock_time(found.eta_seconds)}"
    return f"{rows}, {about}{clock_time(found.audio_seconds)} of audio, {found.speed:.1f} x real time{eta}"
