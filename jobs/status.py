"""How far a job is, read from its output alone: while it runs and after, from anywhere."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from itertools import pairwise
from statistics import median
from typing import Any, Literal

import numpy as np

from jobs.ledger.lease import Timing, is_live, read_lease
from jobs.ledger.ledger import Ledger, exists
from jobs.ledger.records import CommitRecord
from jobs.ledger.rounds import read_rounds
from jobs.ledger.tally import Summary, Tally
from jobs.plan import ShardSet
from jobs.storage.faults import as_input
from jobs.storage.folders import Folder
from jobs.storage.urls import Options
from s3gen.constants import SAMPLE_RATE

EXACT_RECORDS = 4_096  # as many are read; of more shards, so many spread evenly over them
GOLDEN_RATIO = np.uint64(0x9E3779B97F4A7C15)  # its part behind the point, in 2**-64
PAUSE_GAPS = 8  # of the usual time between two of these: a longer one in which none was in work is a pause


@dataclass(frozen=True, kw_only=True, slots=True)
class Status:
    """The state of a job. Rows count when their shard is committed.

    Attributes:
        estimated: what is told of rows beyond their number is that of a sample of the shards done.
    """

    state: Literal["running", "stopped", "finished"]
    shards_total: int
    shards_done: int
    rows_total: int  # all rows of the manifest
    rows_done: int  # synthesised
    rows_failed: int
    audio_seconds: float
    speed: float  # seconds of audio per second in which at least one committed shard was in work; 0 before the first
    eta_seconds: float | None  # at this speed and the mean length of a row so far; None before the first shard
    errors: dict[str, int]  # rows that failed, by code
    problems: dict[str, int]  # rows that were made and do not pass a check, by its name
    retries: int  # how often shards that are done were handed out again by the runs that made them
    padding: float  # its share in what the vocoder computed, 0 to 1
    estimated: bool = False

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)


class Observer:
    """Looks at a job again and again; of what cannot change nothing is read twice.

    Raises:
        InputError: no job was begun in the output, or nobody may read it.
        StorageError: its store does not answer.
    """

    def __init__(self, output: str, options: Options | None = None, *, timing: Timing | None = None) -> None:
        self._folder, self._timing = Folder(output, options), timing
        with as_input("output"):
            self._ledger = Ledger.open(self._folder)
        self._records: dict[int, CommitRecord] = {}

    @as_input("output")
    def look(self) -> Status:
        """The state of the job now.

        It is ``running`` when its lease was renewed within the last 30 seconds by the clock on the wall and its
        process, where it is on this host, is alive.
        """
        if len(read_rounds(self._folder)) != len(self._ledger.rounds):
            self._ledger = self._ledger.reopened()  # with a longer plan
        summary = self._ledger.summary()
        if summary is not None:
            return _finished(summary)
        done, plan = self._ledger.committed(), self._ledger.plan
        rows, tally = plan.rows_of(done), self._tally(done)
        share = rows / max(tally.rows, 1)  # 1, of a sample more
        failed = round(tally.rows_failed * share)
        return Status(
            state="running" if is_live(read_lease(self._folder), self._timing) else "stopped",
            shards_total=len(plan),
            shards_done=len(done),
            rows_total=plan.rows_total,
            rows_done=rows - failed,
            rows_failed=max(0, failed - len(plan.again)),  # without those that are tried again
            audio_seconds=tally.audio_seconds * share,
            speed=tally.speed * share,
            eta_seconds=_eta(tally, rows, plan.rows),
            errors=self._ledger.not_taken_up(_scaled(tally.errors, share)),
            problems=_scaled(tally.problems, share),
            retries=round(tally.retries * share),
            padding=_padding(tally),
            estimated=len(done) > EXACT_RECORDS,
        )

    def _tally(self, done: ShardSet) -> Tally:
        """Of all shards that are done, or of ``EXACT_RECORDS`` of them."""
        wanted = _sample(done)
        unread = [shard for shard in wanted if shard not in self._records]
        read = {record.shard: record for record in self._ledger.read_some(unread)}
        self._records = {shard: read.get(shard) or self._records[shard] for shard in wanted}
        records = list(self._records.values())
        if len(done) <= EXACT_RECORDS:
            return Tally.of(records)
        # Shards that are not in the sample fill the time between those that are, unless it is a pause between two runs.
        starts = sorted(record.started_at for record in records)
        return Tally.of(records, PAUSE_GAPS * median(after - before for before, after in pairwise(starts)))


@as_input("output")
def is_begun(output: str, options: Options | None = None) -> bool:
    """Whether there is a job to look at."""
    return exists(Folder(output, options))


def status(output: str, options: Options | None = None, *, timing: Timing | None = None) -> Status:
    """Reads the state of the job in an output. Raises as `Observer`."""
    return Observer(output, options, timing=timing).look()


def _sample(done: ShardSet) -> list[int]:
    """All shards that are done, or ``EXACT_RECORDS`` of them, evenly: and the same ones but for few when more are."""
    if len(done) <= EXACT_RECORDS:
        return list(done)
    shards = np.flatnonzero(done.mask)
    # The multiples of the golden ratio, without their whole parts, lie evenly between 0 and 1, and so do the shards
    # whose multiples are the smallest.
    smallest = np.argpartition(shards.astype(np.uint64) * GOLDEN_RATIO, EXACT_RECORDS)[:EXACT_RECORDS]
    sample: list[int] = np.sort(shards[smallest]).tolist()
    return sample


def _finished(summary: Summary) -> Status:
    return Status(
        state="finished",
        shards_total=summary.shards,
        shards_done=summary.shards,
        rows_total=summary.rows_total,
        rows_done=summary.rows_done,
        rows_failed=summary.rows_failed,
        audio_seconds=summary.samples / SAMPLE_RATE,
        speed=summary.speed,
        eta_seconds=0.0,
        errors=summary.errors,
        problems=summary.problems,
        retries=summary.retries,
        padding=_padding(summary),
    )


def _scaled(found: Mapping[str, int], share: float) -> dict[str, int]:
    return {name: round(count * share) for name, count in found.items()}


def _padding(sums: Tally | Summary) -> float:
    return sums.padding / sums.positions if sums.positions else 0.0


def _eta(tally: Tally, seen: int, rows: int) -> float | None:
    if not seen or not tally.speed:
        return None
    busy = tally.audio_seconds / tally.speed
    return busy / seen * (rows - seen)
