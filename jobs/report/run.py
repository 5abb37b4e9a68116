"""How a job ran, from its commit records: how fast over time, and which worker was at what.

Time is time at work: while nothing was in work, between two runs for one, it stands still.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import median

import numpy as np

from jobs.ledger.records import CommitRecord
from jobs.ledger.tally import Interval, joined
from jobs.report.charts import Chart, Tick, Values, course, histogram, nice_step, ticks
from jobs.report.spread import Spread
from jobs.report.words import count, length, number, plain, some
from s3gen.constants import SAMPLE_RATE

STEPS = 120  # of the course over time
LANES = 24  # workers that are shown
PIECES = 60  # shards of a worker that are drawn one by one; more are drawn together where they touch
TOUCHING = 0.6  # per cent of the picture
PAUSE_SECONDS = 60.0  # without work, at least, to be a pause
PAUSE_GAPS = 8  # of the usual time between two shards of a sample, likewise
MARKED_PAUSES = 20

UNITS = (("seconds", 1.0, 300.0), ("minutes", 60.0, 300 * 60.0), ("hours", 3600.0, float("inf")))


@dataclass(frozen=True, slots=True)
class Piece:
    """Shards in a worker's lane; left and width in per cent of it."""

    left: float
    width: float
    label: str
    again: bool  # it, or one of them, had been tried before


@dataclass(frozen=True, slots=True)
class Lane:
    """What a worker did."""

    worker: str
    facts: str
    pieces: Sequence[Piece]


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """The pictures of a run.

    Attributes:
        pauses: where, in per cent of the time at work, and how long.
        workers: how many there were, of whom ``lanes`` shows some.
        again: shards that were handed out more than once.
    """

    throughput: Chart
    speeds: Chart | None
    lanes: Sequence[Lane]
    axis: str
    ticks: Sequence[Tick]
    pauses: Sequence[Tick]
    workers: int
    again: int
    seconds: float  # at work
    began: float  # unix time
    ended: float


class WorkTime:
    """Seconds at work before any moment of a job.

    Args:
        busy: when something was in work: apart, ascending.
    """

    def __init__(self, busy: Sequence[Interval]) -> None:
        self.busy = busy
        lengths = [end - start for start, end in busy]
        before = np.concatenate(([0.0], np.cumsum(lengths)))
        self._moments = np.array([moment for interval in busy for moment in interval])
        self._seconds = np.repeat(before, 2)[1:-1]
        self.total = float(before[-1])

    @classmethod
    def of(cls, records: Sequence[CommitRecord], *, all_there: bool) -> WorkTime:
        """Of a job. Short gaps count as work; of a sample those, too, in which other shards may have been in work."""
        gap = PAUSE_SECONDS
        if not all_there:
            starts = sorted(record.started_at for record in records)
            usual = [after - before for before, after in pairwise(starts)]
            gap = max(gap, PAUSE_GAPS * median(usual or [0.0]))
        return cls(joined(((record.started_at, record.finished_at) for record in records), gap))

    def at(self, moments: Values) -> Values:
        """Seconds at work before each of these unix times."""
        return np.interp(moments, self._moments, self._seconds)

    def pauses(self) -> list[Tick]:
        """The longest ones, in the order of time."""
        found = [
            (after[0] - before[1], Tick(100 * float(self.at(np.array(before[1]))) / max(self.total, 1e-9), ""))
            for before, after in pairwise(self.busy)
        ]
        longest = sorted(found, key=lambda pause: -pause[0])[:MARKED_PAUSES]
        return sorted((Tick(tick.at, length(seconds)) for seconds, tick in longest), key=lambda tick: tick.at)


def run_of(records: Sequence[CommitRecord], *, share: float = 1.0, speed: float) -> Run | None:
    """The pictures of a job, or None before its first shard.

    Args:
        records: of all shards that are done, or of a sample spread evenly over them.
        share: what part of the shards that are done it is.
        speed: of the whole, times real time.
    """
    if not records:
        return None
    time = WorkTime.of(records, all_there=share == 1.0)
    unit, seconds = next((name, each) for name, each, most in UNITS if time.total < most)
    span = time.total / seconds
    lanes = _lanes(records, time)
    again = sum(record.tries > 1 for record in records)
    facts = [("mean", f"{number(speed)} × real time"), ("time at work", length(time.total))]
    return Run(
        throughput=course(
            _throughput(records, time) / share,
            span,
            title="Speed over time",
            axis=f"time at work, {unit}",
            unit=lambda value: f"{number(value)} × real time",
            facts=facts,
        ),
        speeds=_speeds(records, all_there=share == 1.0),
        lanes=lanes,
        axis=f"time at work, {unit}",
        ticks=ticks(0.0, span),
        pauses=time.pauses(),
        workers=len({record.worker for record in records}),
        again=again,
        seconds=time.total,
        began=min(record.started_at for record in records),
        ended=max(record.finished_at for record in records),
    )


def _throughput(records: Sequence[CommitRecord], time: WorkTime) -> Values:
    """Seconds of audio per second at work in each step; each shard's is spread over the time it took."""
    starts = time.at(np.array([record.started_at for record in records]))
    ends = np.maximum(time.at(np.array([record.finished_at for record in records])), starts + 1e-6)
    rates = np.array([record.samples / SAMPLE_RATE for record in records]) / (ends - starts)
    step = max(time.total / STEPS, 1e-9)
    edges = step * np.arange(STEPS + 1)
    found = np.empty(STEPS)
    for place in range(STEPS):
        inside = np.minimum(ends, edges[place + 1]) - np.maximum(starts, edges[place])
        found[place] = (np.maximum(inside, 0) * rates).sum() / step
    return found


def _speeds(records: Sequence[CommitRecord], *, all_there: bool) -> Chart | None:
    """Of each shard by the time that its worker had for it alone: it reads the next while it makes one."""
    free: dict[str, float] = {}
    speeds = []
    for record in sorted(records, key=lambda record: record.finished_at):
        began = max(record.started_at, free.get(record.worker, 0.0)) if all_there else record.started_at
        free[record.worker] = record.finished_at
        if record.rows_done:
            speeds.append(record.samples / SAMPLE_RATE / max(record.finished_at - began, 1e-3))
    if not speeds:
        return None
    spread = Spread(0.0, max(nice_step(max(speeds) / 1_000), 1e-9))
    spread.add((np.array(speeds) / spread.step).round().astype(np.int64))
    return histogram(
        spread,
        title="Speed of a worker, shard by shard",
        axis="× real time" if all_there else "× real time, from the reading of a shard to its commit",
        unit=lambda value: f"{number(value)} ×",
        what="shard",
    )


def _lanes(records: Sequence[CommitRecord], time: WorkTime) -> list[Lane]:
    by_worker: dict[str, list[CommitRecord]] = {}
    for record in sorted(records, key=lambda record: record.started_at):
        by_worker.setdefault(record.worker, []).append(record)
    # Those with trouble first, when not all can be shown.
    chosen = sorted(by_worker, key=lambda worker: not any(record.tries > 1 for record in by_worker[worker]))[:LANES]
    return [_lane(worker, made, time) for worker, made in by_worker.items() if worker in chosen]


def _lane(worker: str, records: Sequence[CommitRecord], time: WorkTime) -> Lane:
    pieces: list[Piece] = []
    end = 0.0
    total = max(time.total, 1e-9)
    for record in records:
        # A worker reads the next shard while it makes one: its piece begins where the one before ends.
        left, right = (100 * float(time.at(np.array(at))) / total for at in (record.started_at, record.finished_at))
        left = min(max(left, end), 99.9)
        end = max(right, left + 0.1)
        piece = Piece(left, end - left, _piece_label(record), record.tries > 1)
        if len(records) > PIECES and pieces and _touch(pieces[-1], piece):
            before = pieces.pop()
            piece = Piece(before.left, end - before.left, "several shards", before.again)
        pieces.append(piece)
    seconds = sum(record.samples for record in records) / SAMPLE_RATE
    again = sum(record.tries > 1 for record in records)
    facts = f"{some(len(records), 'shard')}, {length(seconds)} of audio" + (f", {count(again)} again" if again else "")
    return Lane(plain(worker), facts, pieces)


def _touch(before: Piece, after: Piece) -> bool:
    return before.again == after.again and after.left - (before.left + before.width) < TOUCHING


def _piece_label(record: CommitRecord) -> str:
    tries = f", try {record.tries}" if record.tries > 1 else ""
    failed = f", {count(record.rows_failed)} failed" if record.rows_failed else ""
    seconds = length(record.finished_at - record.started_at)
    return f"shard {record.shard}: {some(record.rows, 'row')}{failed}, {seconds}{tries}"
