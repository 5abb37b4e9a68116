"""The command `s3gen`.

Exit codes of `synth` and `resume`: 0 every row synthesised; 3 finished, with rows in the failures table; 1 not
finished, or another run is alive on the output; 2 bad input or configuration, a refused change, no such output: nothing
was started or written. `voices`: 0, or 3 with clips reported. `verify`: 0 whole, 1 damage. `status`, `plan`: 0.

Each command imports what it needs when it runs: `s3gen status` has no use for Ray.
"""

from __future__ import annotations

import contextlib
import json
import logging
import signal
import sys
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import wraps
from importlib.metadata import version
from types import FrameType
from typing import TYPE_CHECKING, Any, NoReturn

import click
from rich.console import Console

from jobs.errors import JobError
from jobs.progress import ConsoleHandler, clock_time

if TYPE_CHECKING:
    from jobs.estimate import Estimate
    from jobs.runs import Outcome
    from jobs.status import Status
    from jobs.urls import Options
    from jobs.verify import Verification
    from jobs.voice_build import BuildReport

FINISHED, UNFINISHED, BAD_INPUT, REPORTED = 0, 1, 2, 3
SHOWN_ITEMS = 20  # of a long list

Command = Callable[..., Any]


@dataclass(frozen=True, slots=True)
class _Context:
    console: Console  # stderr: progress, log and errors; results go to stdout


# --- what all commands share ------------------------------------------------------------------------------------------


def _command(function: Command) -> Command:
    """Errors as one message and an exit code; a traceback only with --debug."""

    @wraps(function)
    def run(*args: Any, debug: bool, **kwargs: Any) -> None:
        console = Console(stderr=True)
        try:
            with _signals(), _logging(console):
                code = function(_Context(console), *args, **kwargs)
        except KeyboardInterrupt:
            _fail(
                "stopped before it had finished; what is committed stays, the same command goes on", UNFINISHED, debug
            )
        except JobError as error:
            _fail(str(error), error.exit_code, debug)
        except Exception as error:
            hint = "" if debug else " (--debug shows where)"
            _fail(f"{type(error).__name__}: {error}{hint}", UNFINISHED, debug)
        sys.exit(code)

    return click.option("--debug", is_flag=True, help="Show tracebacks.")(run)


def _fail(message: str, code: int, debug: bool) -> NoReturn:
    if debug:
        traceback.print_exc()
    click.echo(f"error: {message}", err=True)
    sys.exit(code)


@contextlib.contextmanager
def _signals() -> Iterator[None]:
    """SIGTERM unwinds a command as Ctrl-C does: leases are released, temporary files go."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


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


def _options(path: str | None) -> Options:
    from jobs.config import load_storage_options

    return {} if path is None else load_storage_options(path)


storage_option = click.option(
    "--storage-options", metavar="FILE", help="YAML or JSON with options for the storage (fsspec's), such as keys."
)
set_option = click.option(
    "--set", "changes", multiple=True, metavar="KEY=VALUE", help="Change a configuration key; dotted keys reach down."
)
manifest_option = click.option("--manifest", metavar="M", help="Short for --set manifest=M.")
limit_option = click.option("--limit", type=click.IntRange(min=1), metavar="N", help="A trial of the first N rows.")
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON alone.")


def _overrides(changes: tuple[str, ...], manifest: str | None) -> list[str]:
    # As JSON, which is YAML too: a path is a text whatever it looks like.
    return [*changes, *([] if manifest is None else [f"manifest={json.dumps(manifest)}"])]


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(version("s3gen"), prog_name="s3gen")
def main() -> None:
    """Speech tokens and voices in, sharded 24 kHz audio out."""


# --- voices -----------------------------------------------------------------------------------------------------------


@main.command()
@click.argument("source", metavar="INPUT")
@click.option("--out", required=True, metavar="URL", help="The voice table, a Parquet file.")
@click.option("--model", required=True, metavar="M", help="Hub id, folder, file, URL, or random:tiny.")
@click.option("--model-file", metavar="FILE", help="Which checkpoint of a folder that holds several.")
@click.option("--append", is_flag=True, help="Add to the table; clips that it has already are skipped.")
@click.option("--workers", type=click.IntRange(min=1), default=1, show_default=True, help="Above 1: on Ray.")
@click.option("--ray-address", metavar="A", help="A Ray cluster; without, this machine.")
@click.option("--max-seconds", type=float, help="Cut clips here.  [default: 10, or the table's with --append]")
@storage_option
@_command
def voices(context: _Context, source: str, storage_options: str | None, **order: Any) -> int:
    """Make a voice table from reference clips.

    INPUT is a folder of audio files (voice ids are their paths without suffix), or a .csv, .jsonl or .parquet file with
    the columns voice_id and path. Clips that cannot become a voice are listed, and written to URL.failures.parquet.
    Stopped, the same command goes on where it was.
    """
    from jobs.runs import VoicesOrder, make_voices

    report = make_voices(VoicesOrder(source=source, options=_options(storage_options), **order), context.console)
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
        click.echo(f"  {failure.voice_id or failure.source}: {failure.error}: {failure.message}")
    if len(report.failures) > SHOWN_ITEMS:
        click.echo(f"  and {len(report.failures) - SHOWN_ITEMS} more")


# --- jobs -------------------------------------------------------------------------------------------------------------


@main.command()
@click.argument("config")
@set_option
@manifest_option
@limit_option
@storage_option
@_command
def synth(
    context: _Context,
    config: str,
    changes: tuple[str, ...],
    manifest: str | None,
    limit: int | None,
    storage_options: str | None,
) -> int:
    """Run the job of a configuration file, or go on with it.

    With --limit the trial goes to an output of its own: the configured one with -trial-N appended.
    """
    from jobs.config import load_config
    from jobs.runs import synth as run
    from jobs.runs import trial_output

    job = load_config(config, _overrides(changes, manifest), storage_options=_options(storage_options))
    if limit is not None:
        click.echo(f"a trial of the first {limit} rows, in {trial_output(job.output, limit)}", err=True)
    return _print_outcome(run(job, limit, context.console))


@main.command()
@click.argument("output")
@set_option
@storage_option
@_command
def resume(context: _Context, output: str, changes: tuple[str, ...], storage_options: str | None) -> int:
    """Go on with a job that was stopped or has failed, from what its output records.

    --set may change workers, gpus_per_worker, ray_address, stall_seconds, storage_options, log_level and batch.
    """
    from jobs.runs import resume as run

    return _print_outcome(run(output, list(changes), _options(storage_options), context.console))


def _print_outcome(outcome: Outcome) -> int:
    summary, model = outcome.summary, outcome.model
    if not outcome.made_shards:
        click.echo("nothing was left to do: the job is finished")
    click.echo(
        f"{summary.rows_done} of {summary.rows_total} rows made, {clock_time(outcome.audio_seconds)} of audio "
        f"({outcome.audio_seconds:.1f} s), at {summary.speed:.1f} x real time"
    )
    click.echo(f"shards: {outcome.output}/audio/  ({summary.shards} by plan; where each row is: index.parquet)")
    if summary.rows_failed:
        click.echo(f"failed: {summary.rows_failed} rows, with their reasons in {outcome.output}/failures.parquet")
    if summary.duplicates:
        click.echo(f"doubled ids: {summary.duplicates} rows, listed in {outcome.output}/duplicates.parquet")
    if model.startswith("random:"):
        click.echo(
            f"The weights of {model} are random, so this is noise; with --set model=ResembleAI/chatterbox (downloads) "
            "or your own checkpoint, and voices made with the same model, it is speech."
        )
    return summary.exit_code


@main.command()
@click.argument("output")
@json_option
@storage_option
@_command
def status(context: _Context, output: str, as_json: bool, storage_options: str | None) -> int:
    """Say how far a job is, from its output alone."""
    from jobs.status import status as read

    found = read(output, _options(storage_options))
    if as_json:
        click.echo(json.dumps(found.as_dict()))
    else:
        _print_status(found)
    return FINISHED


def _print_status(found: Status) -> None:
    about = "about " if found.estimated else ""
    failed = f", {about}{found.rows_failed} failed" if found.rows_failed else ""
    eta = "" if not found.eta_seconds else f", about {clock_time(found.eta_seconds)} left at that speed"
    click.echo(found.state)
    click.echo(f"shards: {found.shards_done} of {found.shards_total}")
    click.echo(f"rows: {about}{found.rows_done} of {found.rows_total} made{failed}")
    click.echo(f"audio: {about}{clock_time(found.audio_seconds)}, at {found.speed:.1f} x real time{eta}")


@main.command()
@click.argument("output")
@storage_option
@_command
def verify(context: _Context, output: str, storage_options: str | None) -> int:
    """Read everything that was made again: each row once, decodes, right length, checksums."""
    from jobs.verify import verify as read

    found = read(output, _options(storage_options))
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


@main.command()
@click.argument("config")
@set_option
@manifest_option
@limit_option
@click.option("--speed", type=click.FloatRange(min=0, min_open=True), help="Measured x real time of one GPU.")
@json_option
@storage_option
@_command
def plan(
    context: _Context,
    config: str,
    changes: tuple[str, ...],
    manifest: str | None,
    limit: int | None,
    speed: float | None,
    as_json: bool,
    storage_options: str | None,
) -> int:
    """Say what a job would take; writes nothing.

    Reads footers and a sample of up to eight shards. GPU-hours are only given for a --speed that you have measured,
    such as the speed of a trial (synth --limit).
    """
    from jobs.config import load_config
    from jobs.estimate import estimate

    job = load_config(config, _overrides(changes, manifest), storage_options=_options(storage_options))
    found = estimate(job, limit)
    gpu_hours = None if speed is None else found.audio_hours / speed
    if as_json:
        click.echo(json.dumps({**found.as_dict(), "gpu_hours": gpu_hours}))
    else:
        _print_estimate(found, gpu_hours)
    return FINISHED


def _print_estimate(found: Estimate, gpu_hours: float | None) -> None:
    exact = found.sampled_rows == found.rows
    click.echo(f"rows: {found.rows} in {found.shards} shards")
    click.echo(f"audio: {'' if exact else 'about '}{found.audio_hours:.4g} hours")
    click.echo(
        f"batches of at most {found.max_frames} frames: {found.batches} "
        f"of {'all rows' if exact else f'a sample of {found.sampled_rows} rows'}"
    )
    shares = ", ".join(f"{share:.1%} in the {part}" for part, share in found.padding.items())
    click.echo(f"padding among what is computed: {shares}")
    if found.max_frames_assumed:
        click.echo(
            "  (assumed: with batch.max_frames auto the job finds its number when it begins, from its GPU's memory)"
        )
    if found.sampled_failures:
        reasons = ", ".join(f"{code} {count}" for code, count in Counter(found.sampled_failures).most_common())
        click.echo(f"rows {'' if exact else 'of the sample '}that will fail: {reasons}")
    if gpu_hours is None:
        click.echo("GPU-hours: give --speed, the x real time that a trial (synth --limit) showed on one GPU")
    else:
        click.echo(f"GPU-hours: {gpu_hours:.4g}")
