"""How far a job is, read from its output alone: while it runs and after, from anywhere."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from itertools import pairwise
from statistics import median
from typing import Any, Literal

from jobs.lease import Timing, is_live, read_lease
from jobs.ledger import Ledger
from jobs.plan import ShardSet
from jobs.storage import Folder
from jobs.tally import Summary, Tally
from jobs.urls import Options
from s3gen.constants import SAMPLE_RATE

EXACT_RECORDS = 4_096  # as many are read; of more shards, so many spread evenly over them
PAUSE_GAPS = 8  # of the usual time between two of these: a longer one in which none was in work is a pause


@dataclass(frozen=True, kw_only=True, slots=True)
class Status:
    """The state of a job. Rows count when their shard is committed.

    Attributes:
        estimated: how many rows failed, the seconds of audio and the speed are those of a sample of the shards done.
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
    estimated: bool = False

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)


def status(output: str, options: Options | None = None, *, timing: Timing | None = None) -> Status:
    """Reads the state of the job in an output.

    A job is ``running`` when its lease was renewed within the last 30 seconds by the clock on the wall and its
    process, where it is on this host, is alive.

    Raises:
        InputError: no job was begun there.
    """
    folder = Folder(output, options)
    ledger = Ledger.open(folder)
    summary = ledger.summary()
    if summary is not None:
        return _finished(summary)
    done = ledger.committed()
    rows = ledger.plan.rows_of(done)
    tally = _tally(ledger, done)
    share = rows / max(tally.rows, 1)  # 1, of a sample more
    failed = round(tally.rows_failed * share)
    return Status(
        state="running" if is_live(read_lease(folder), timing) else "stopped",
        shards_total=len(ledger.plan),
        shards_done=len(done),
        rows_total=ledger.plan.rows,
        rows_done=rows - failed,
        rows_failed=failed,
        audio_seconds=tally.audio_seconds * share,
        speed=tally.speed * share,
        eta_seconds=_eta(tally, rows, ledger.plan.rows),
        estimated=len(done) > EXACT_RECORDS,
    )


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
    )


def _tally(ledger: Ledger, done: ShardSet) -> Tally:
    """Of all shards that are done, or of ``EXACT_RECORDS`` of them."""
    if len(done) <= EXACT_RECORDS:
        return Tally.of(ledger.read_some(done))
    shards = list(done)
    records = ledger.read_some(shards[n * len(shards) // EXACT_RECORDS] for n in range(EXACT_RECORDS))
    # Shards that are not in the sample fill the time between those that are, unless it is a pause between two runs.
    starts = sorted(record.started_at for record in records)
    return Tally.of(records, PAUSE_GAPS * median(after - before for before, after in pairwise(starts)))


def _eta(tally: Tally, seen: int, rows: int) -> float | None:
    if not seen or not tally.speed:
        return None
    busy = tally.audio_seconds / tally.speed
    return busy / seen * (rows - seen)
