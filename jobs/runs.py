"""Whole runs, from a checked configuration to a finished output: what the command line starts.

Everything is checked first: until `Ledger.start` nothing is written.
"""

from __future__ import annotations

import contextlib
import logging
import platform
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import torch
from rich.console import Console

from jobs.actor import Recipe
from jobs.budget import ASSUMED_GPU_FRAMES, CPU_FRAMES, LEAST_FRAMES, Calibration
from jobs.config import JobConfig, config_from
from jobs.crew import Crew
from jobs.errors import InputError, JobError, Unfinished
from jobs.finish import Task, Work, finalise
from jobs.isolation import Case
from jobs.lease import Lease
from jobs.ledger import Ledger, exists
from jobs.manifest import Manifest
from jobs.models import device_of, open_model
from jobs.patience import PATIENT
from jobs.placement import Share
from jobs.plan import Plan, ShardSet, make_plan
from jobs.progress import Meter, showing
from jobs.schedule import Schedule
from jobs.session import connected, nodes, plan_share
from jobs.stop import Stop
from jobs.storage import Folder
from jobs.tally import Summary
from jobs.urls import Options
from jobs.voices import VoiceTable
from jobs.worker import Order, ShardReport, fingerprints
from s3gen.constants import SAMPLE_RATE

log = logging.getLogger(__name__)

SHOWN_SHARDS = 3  # that were given up, in the error
CALIBRATION_SECONDS = 1_800.0  # the least that finding the frame budget may take
RANGES_HERE, ROWS_HERE = 4, 4_000_000  # of shards, whose end this process makes by itself
FINISHER_SHARE = Share(cpus=1, gpus=0, threads=1)


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """A finished job."""

    output: str
    model: str
    summary: Summary
    made_shards: int  # by this run; 0 when there was nothing left to do

    @property
    def audio_seconds(self) -> float:
        """Of all rows."""
        return self.summary.samples / SAMPLE_RATE


def synth(config: JobConfig, limit: int | None, console: Console) -> Outcome:
    """Runs a job from its configuration, or goes on with it where its output is begun.

    Args:
        limit: make a trial of the first rows, in an output of its own (see `trial_output`).

    Raises:
        InputError: bad input, or a change that the begun output refuses; nothing was started or written.
        JobError: the job is not finished.
    """
    if limit is not None:
        config = config.model_copy(update={"output": trial_output(config.output, limit)})
    job, plan = _describe(config, limit)
    folder = Folder(config.output, config.storage_options)
    if exists(folder):
        Ledger.open(folder).check_unchanged(job, plan)
    return _run(config, job, plan, folder, console)


def resume(output: str, overrides: list[str], options: Options, console: Console) -> Outcome:
    """Goes on with the job in an output, from what the output itself records. Raises as `synth`."""
    folder = Folder(output, options)
    ledger = Ledger.open(folder)
    values = {**ledger.job["config"], "output": folder.url}
    config = config_from(values, overrides, storage_options=options)
    if config.output != folder.url:
        raise InputError(f"--set output={config.output}: the job is in {folder.url} and goes on there")
    ledger.check_unchanged({"config": config.frozen() | {"output": ledger.job["config"]["output"]}})
    summary = ledger.summary()
    if summary is not None:
        return Outcome(output=folder.url, model=config.model, summary=summary, made_shards=0)
    limit = ledger.job["limit"]
    job, plan = _describe(config, limit)
    ledger.check_unchanged({"fingerprints": job["fingerprints"]}, plan)
    return _run(config, job, plan, folder, console)


def trial_output(output: str, limit: int) -> str:
    """Where `--limit` puts its trial: beside the output, which stays free for the whole job."""
    return f"{output.rstrip('/')}-trial-{limit}"


def _describe(config: JobConfig, limit: int | None) -> tuple[dict[str, Any], Plan]:
    """The job as the ledger keeps it, and its plan; reads all inputs, writes nothing."""
    options = config.storage_options
    manifest = Manifest.scan(config.manifest, options)
    voices = VoiceTable.open(config.voices, options)
    model = open_model(config.model, config.model_file, "cpu", options)
    voices.check_model(model.voice_fingerprint())
    job = {
        "config": config.frozen(),
        "fingerprints": fingerprints(model, voices),
        "limit": limit,
        "versions": {
            "s3gen": version("s3gen"),
            "torch": torch.__version__,
            "ray": version("ray"),
            "python": platform.python_version(),
        },
    }
    return job, make_plan(manifest, config.shard_rows, limit)


def _run(config: JobConfig, job: dict[str, Any], plan: Plan, folder: Folder, console: Console) -> Outcome:
    logging.getLogger("jobs").setLevel(config.log_level.upper())
    with _workplace(config, folder, plan) as (share, stop):
        # Where only the end is left to do, the job is begun.
        ledger = Ledger.open(folder) if share is None or exists(folder) else _begin(config, job, plan, folder, share)
        with ledger.lease(on_wait=log.warning) as lease:
            done = ledger.committed()
            if len(done) < len(plan):
                if share is None:
                    raise Unfinished(f"{folder.url}: shards that were committed are gone; go on with: {_again(folder)}")
                _make_shards(config, ledger, share, done, lease, stop, console)
            summary = finalise(ledger, None if _is_small(plan) else _on_ray(config, ledger, lease, stop))
        made = len(plan) - len(done)
        return Outcome(output=folder.url, model=config.model, summary=summary, made_shards=made)


def _begin(config: JobConfig, job: dict[str, Any], plan: Plan, folder: Folder, share: Share) -> Ledger:
    """The job in its output, with what a resume shall find as it was here: neither follows from the configuration.

    Samples on a CPU depend on the number of threads in their last bits; a batch's rows on each other in theirs.
    """
    batch = {"max_frames": _frame_budget(config, share)}
    job = {**job, "config": {**job["config"], "batch": batch}, "threads": share.threads}
    return Ledger.start(folder, job, plan)


def _frame_budget(config: JobConfig, share: Share) -> int:
    """`batch.max_frames` as a number.

    Raises:
        JobError: it is auto, and no worker could find it.
    """
    if config.batch.max_frames != "auto":
        return config.batch.max_frames
    if not share.gpus:
        return CPU_FRAMES
    # Where a worker would be: this process may have no GPU.
    recipe = Recipe(
        make="jobs.budget:open_calibrator",
        arguments={
            "config": config.frozen(),
            "options": config.storage_options,
            "threads": share.threads,
            "gpus": share.gpus,
        },
    )
    schedule, found = Schedule([0]), list[Calibration]()
    describe = "finding the frame budget".format
    # It has no pulse: loading, compiling and measuring count as one.
    stall = max(config.stall_seconds, CALIBRATION_SECONDS)
    crew = Crew(recipe, workers=1, share=share, describe=describe, stall_seconds=stall)
    crew.work(schedule, lambda task, calibration: found.append(calibration))
    if not found:
        raise JobError(
            f"batch.max_frames: auto did not come to a number: {schedule.given_up[0]}; give one, such as "
            f"--set batch.max_frames={ASSUMED_GPU_FRAMES}"
        )
    log.info("%s", found[0])
    return found[0].max_frames


@contextlib.contextmanager
def _workplace(config: JobConfig, folder: Folder, plan: Plan) -> Iterator[tuple[Share | None, Stop]]:
    """Ray, and the share of it that a worker gets; None where only the end of a small job is left to do."""
    stop = Stop()
    if config.ray_address is None:
        device_of(config)  # a GPU that is not here is bad input, to be said before Ray starts
    if _is_small(plan) and exists(folder) and len(Ledger.open(folder).committed()) == len(plan):
        with stop.listening():
            yield None, stop
        return
    with connected(config.ray_address), stop.listening():
        yield plan_share(config.workers, gpus_of(config), own=config.ray_address is None), stop


def _is_small(plan: Plan) -> bool:
    """Whether this process makes the end of the job by itself."""
    return plan.ranges <= RANGES_HERE and plan.rows <= ROWS_HERE


def gpus_of(config: JobConfig) -> float:
    """How much of a GPU each worker asks of the connected cluster.

    Raises:
        InputError: `engine.device` is cuda and the cluster has no GPU.
    """
    has_gpus = any(node.gpus for node in nodes())
    if config.engine.device == "cuda" and not has_gpus:
        raise InputError("engine.device: cuda is asked for, and Ray finds no GPU; give cpu or auto")
    return config.gpus_per_worker if has_gpus and config.engine.device != "cpu" else 0.0


def _make_shards(
    config: JobConfig, ledger: Ledger, share: Share, done: ShardSet, lease: Lease, stop: Stop, console: Console
) -> None:
    plan, folder = ledger.plan, ledger.folder
    given, frozen = config.batch.max_frames, ledger.job["config"]["batch"]["max_frames"]
    recipe = Recipe(
        make="jobs.worker:Worker.open",
        arguments={
            "output": folder.url,
            "options": config.storage_options,
            "max_frames": frozen if given == "auto" else given,
            "threads": ledger.job["threads"],
        },
    )
    budget = recipe.arguments["max_frames"]
    if config.stall_seconds < PATIENT.total:
        log.warning(
            "stall_seconds: %g is less than the %g s for which a store's trouble is waited out, and will pass for a "
            "worker that hangs; give more",
            config.stall_seconds,
            PATIENT.total,
        )
    left = (index for index in range(len(plan)) if index not in done)
    schedule = Schedule(left, rows=lambda shard: plan.shard(shard).rows)
    meter = Meter(plan.rows, rows_before=plan.rows_of(done))
    crew = Crew(
        recipe,
        workers=config.workers,
        share=share,
        payload=lambda shard: _order(shard, schedule.case(shard), budget),
        describe="shard {}".format,
        stall_seconds=config.stall_seconds,
    )
    made = 0
    with showing(meter, console) as changed, stop.graceful():

        def on_report(shard: int, report: ShardReport) -> None:
            nonlocal made
            made += 1
            log.debug("shard %d: %d rows, %d failed", shard, report.rows_done, report.rows_failed)
            meter.add(done=report.rows_done, failed=report.rows_failed, audio_seconds=report.samples / SAMPLE_RATE)
            changed()

        crew.work(schedule, on_report, lambda: _lost_or_asked(lease, stop))
    if stop.requested or schedule.given_up:
        raise Unfinished(_what_is_left(ledger, len(plan) - len(done) - made, schedule, stop))


def _order(shard: int, case: Case, max_frames: int) -> Order:
    smaller = min(max_frames, max(LEAST_FRAMES, max_frames >> case.halvings)) if case.halvings else None
    return Order(shard, case.probe, case.guilty, smaller)


def _lost_or_asked(lease: Lease, stop: Stop) -> bool:
    if lease.lost is not None:
        lease.confirm()  # raises, with what happened
    return stop.requested


def _on_ray(config: JobConfig, ledger: Ledger, lease: Lease, stop: Stop) -> Work:
    """Workers for the end of a large job; they need no GPU."""
    arguments = {"output": ledger.folder.url, "options": config.storage_options}
    recipe = Recipe(make="jobs.finish:Finisher.open", arguments=arguments)

    def work(tasks: Sequence[Task]) -> list[Any]:
        log.info("finishing: %d tasks, the first is %s", len(tasks), tasks[0])
        reports: dict[int, Any] = {}
        schedule = Schedule(range(len(tasks)))
        crew = Crew(
            recipe,
            workers=max(1, min(len(tasks), FINISHER_SHARE.slots(nodes()))),
            share=FINISHER_SHARE,
            payload=tasks.__getitem__,
            describe=lambda number: str(tasks[number]),
            stall_seconds=config.stall_seconds,
        )
        with stop.graceful():
            crew.work(schedule, reports.__setitem__, lambda: _lost_or_asked(lease, stop))
        if len(reports) < len(tasks):
            why = [f"{tasks[number]}: {reason}" for number, reason in sorted(schedule.given_up.items())[:SHOWN_SHARDS]]
            lines = [f"{ledger.folder.url}: all shards are done, but the end of the job is not", *why]
            raise Unfinished("\n".join([*lines, f"go on with: {_again(ledger.folder)}"]))
        return [reports[number] for number in range(len(tasks))]

    return work


def _what_is_left(ledger: Ledger, left: int, schedule: Schedule, stop: Stop) -> str:
    # As far as this process knows: a run that ends since its store is gone does not ask that.
    lines = [f"{ledger.folder.url}: {left} of {len(ledger.plan)} shards are not done"]
    if stop.requested:
        lines[0] += f", stopped by {stop.signal}"
    failed = sorted(schedule.given_up.items())
    lines += [f"  shard {shard} was given up: {reason}" for shard, reason in failed[:SHOWN_SHARDS]]
    if len(failed) > SHOWN_SHARDS:
        lines.append(f"  and {len(failed) - SHOWN_SHARDS} more were given up")
    return "\n".join([*lines, f"go on with: {_again(ledger.folder)}"])


def _again(folder: Folder) -> str:
    return f"s3gen resume {shlex.quote(folder.url)}"
