"""What every kind of job shares: its place to work, its shards made by a crew, its end.

A *trade* is one kind of job, described: it says what is made of which plan, how such a job is begun, and what makes its
shards. Until `Trade.begin` nothing is written.
"""

from __future__ import annotations

import contextlib
import logging
import platform
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any, Literal, Protocol

import torch
from rich.console import Console

from jobs.config.config import RunConfig
from jobs.crew.actor import Recipe
from jobs.crew.crew import Crew
from jobs.crew.isolation import Case
from jobs.crew.placement import Share
from jobs.crew.schedule import Schedule
from jobs.crew.session import connected, nodes, plan_share
from jobs.crew.sight import Sight
from jobs.engine.models import device_of
from jobs.errors import InputError, Unfinished
from jobs.finish import Task, Work, finalise
from jobs.ledger.lease import Lease
from jobs.ledger.ledger import Ledger
from jobs.ledger.records import ShardReport
from jobs.ledger.tally import Summary
from jobs.live import showing
from jobs.metrics import Metrics, endpoints
from jobs.plan import Plan, ShardSet
from jobs.progress import Meter
from jobs.retry import begin_retry
from jobs.stop import Stop
from jobs.storage.faults import as_input
from jobs.storage.folders import Folder
from jobs.storage.patience import PATIENT
from s3gen.constants import SAMPLE_RATE

log = logging.getLogger(__name__)

SHOWN_SHARDS = 3  # that were given up, in the error
RANGES_HERE, ROWS_HERE = 4, 4_000_000  # of shards, whose end this process makes by itself
FINISHER_SHARE = Share(cpus=1, gpus=0, threads=1)


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """A finished job."""

    output: str
    model: str
    summary: Summary
    made_shards: int  # by this run; 0 when there was nothing left to do
    table: str | None = None  # the URL of what was made, where that is a table and not shards of audio

    @property
    def audio_seconds(self) -> float:
        """Of all rows."""
        return self.summary.samples / SAMPLE_RATE


class Trade(Protocol):
    """One job of some kind, described: all its inputs have been read."""

    @property
    def config(self) -> RunConfig:
        """How it is run."""

    @property
    def device(self) -> Literal["auto", "cpu", "cuda"]:
        """Where its model is to run."""

    @property
    def plan(self) -> Plan:
        """Its shards."""

    def begin(self, folder: Folder, share: Share) -> Ledger:
        """Begins the job in its output; joins another run that has begun the same one a moment ago."""

    def recipe(self, ledger: Ledger) -> Recipe:
        """How a worker is made."""

    def order(self, ledger: Ledger, shard: int, case: Case) -> Any:
        """What a worker gets for a shard; what it returns is a `ShardReport`."""


def run(trade: Trade, folder: Folder, console: Console, *, retry: bool = False) -> tuple[Summary, int]:
    """Makes what is left of a job, and its end.

    Args:
        retry: then take up the rows again that failed of what another try may mend, once (see `jobs.retry`); a round
            of this kind that is not finished is this one.

    Returns:
        The totals, and how many shards this run has made.

    Raises:
        InputError: no worker could be placed, or nobody may write the output; nothing was started or written.
        JobError: the job is not finished.
    """
    logging.getLogger("jobs").setLevel(trade.config.log_level.upper())
    with contextlib.ExitStack() as held:
        share, stop = held.enter_context(workplace(trade, folder, retry=retry))
        # Where only the end is left to do, the job is begun.
        ledger = Ledger.open(folder) if share is None else Ledger.found(folder) or trade.begin(folder, share)
        with as_input("output"):  # of which this run has changed nothing as long as it has no lease
            lease = held.enter_context(ledger.lease(on_wait=log.warning))
        # The run that had the lease before may have begun another round.
        ledger = ledger.reopened()
        # Else a command that is killed and given again, until it ends, would begin a round each time.
        under_way = bool(ledger.rounds) and ledger.summary() is None
        if retry and under_way:
            log.info("round %d is not finished: this run goes on with it, and begins no other", len(ledger.rounds))
        summary, made = _to_the_end(trade, ledger, share, lease, stop, console)
        again = begin_retry(ledger.reopened(), trade.config.storage_options) if retry and not under_way else None
        if again is not None:
            log.info("round %d: %s rows are tried again", len(again.rounds), again.rows_in_round)
            summary, more = _to_the_end(trade, again, share, lease, stop, console)
            made += more
        return summary, made


def _to_the_end(
    trade: Trade, ledger: Ledger, share: Share | None, lease: Lease, stop: Stop, console: Console
) -> tuple[Summary, int]:
    done = ledger.committed()
    if len(done) < len(ledger.plan):
        if share is None:
            url = ledger.folder.url
            raise Unfinished(f"{url}: shards that were committed are gone; go on with: {ledger.resume_command}")
        _make_shards(trade, ledger, share, done, lease, stop, console)
    work = None if _is_small(ledger.plan) else on_ray(trade.config, ledger, lease, stop)
    return finalise(ledger, work), len(ledger.plan) - len(done)


def versions() -> dict[str, str]:
    """What a job was begun with, for the record."""
    return {
        "s3gen": version("s3gen"),
        "torch": torch.__version__,
        "ray": version("ray"),
        "python": platform.python_version(),
    }


@contextlib.contextmanager
def workplace(trade: Trade, folder: Folder, *, retry: bool = False) -> Iterator[tuple[Share | None, Stop]]:
    """Ray, and the share of it that a worker gets; None where only the end of a small job is left to do."""
    stop, config = Stop(), trade.config
    if config.ray_address is None:
        device_of(trade.device)  # a GPU that is not here is bad input, to be said before Ray starts
    if not retry and _only_the_end_is_left(folder):
        with stop.listening():
            yield None, stop
        return
    with connected(config.ray_address), stop.listening():
        yield plan_share(config.workers, gpus_of(trade), own=config.ray_address is None), stop


def _only_the_end_is_left(folder: Folder) -> bool:
    with as_input("output"):
        ledger = Ledger.found(folder)
        return ledger is not None and _is_small(ledger.plan) and len(ledger.committed()) == len(ledger.plan)


def _is_small(plan: Plan) -> bool:
    """Whether this process makes the end of the job by itself."""
    return plan.ranges <= RANGES_HERE and plan.rows <= ROWS_HERE


def gpus_of(trade: Trade) -> float:
    """How much of a GPU each worker asks of the connected cluster.

    Raises:
        InputError: the job is to run on a GPU and the cluster has none.
    """
    has_gpus = any(node.gpus for node in nodes())
    if trade.device == "cuda" and not has_gpus:
        raise InputError("engine.device: cuda is asked for, and Ray finds no GPU; give cpu or auto")
    return trade.config.gpus_per_worker if has_gpus and trade.device != "cpu" else 0.0


def _make_shards(
    trade: Trade, ledger: Ledger, share: Share, done: ShardSet, lease: Lease, stop: Stop, console: Console
) -> None:
    plan = ledger.plan
    _check_patience(trade.config)
    left = (index for index in range(len(plan)) if index not in done)
    schedule = Schedule(left, rows=lambda shard: plan.shard(shard).rows)
    earlier = plan.rows - ledger.rows_in_round
    meter = Meter(ledger.rows_in_round, rows_before=plan.rows_of(done) - earlier)
    metrics = Metrics(meter, ledger.folder.url)
    log.debug("metrics for Prometheus: %s", ", ".join(endpoints()) or "none, this Ray has no agent that gives them")
    crew = _crew(trade, ledger, share, schedule)
    made = 0
    with showing(meter, console) as changed, stop.graceful():

        def on_report(shard: int, report: ShardReport) -> None:
            nonlocal made
            made += 1
            log.debug("shard %d: %d rows, %d failed", shard, report.rows_done, report.rows_failed)
            meter.take(report)
            metrics.take(report)
            changed()

        def on_look(workers: Sequence[Sight]) -> None:
            metrics.look(workers)
            changed(workers)

        crew.work(schedule, on_report, lambda: _lost_or_asked(lease, stop), on_look)
        on_look([])
    if stop.requested or schedule.given_up:
        raise Unfinished(_what_is_left(ledger, len(plan) - len(done) - made, schedule, stop))


def _crew(trade: Trade, ledger: Ledger, share: Share, schedule: Schedule) -> Crew:
    return Crew(
        trade.recipe(ledger),
        workers=trade.config.workers,
        share=share,
        payload=lambda shard: trade.order(ledger, shard, schedule.case(shard)),
        describe="shard {}".format,
        stall_seconds=trade.config.stall_seconds,
    )


def _check_patience(config: RunConfig) -> None:
    if config.stall_seconds < PATIENT.total:
        log.warning(
            "stall_seconds: %g is less than the %g s for which a store's trouble is waited out, and will pass for a "
            "worker that hangs; give more",
            config.stall_seconds,
            PATIENT.total,
        )


def _lost_or_asked(lease: Lease, stop: Stop) -> bool:
    if lease.lost is not None:
        lease.confirm()  # raises, with what happened
    return stop.requested


def on_ray(config: RunConfig, ledger: Ledger, lease: Lease, stop: Stop) -> Work:
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
            raise Unfinished("\n".join([*lines, f"go on with: {ledger.resume_command}"]))
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
    return "\n".join([*lines, f"go on with: {ledger.resume_command}"])
