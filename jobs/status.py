"""How far a job is, read from its output alone: while it runs and after, from anywhere."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

from jobs.finish import Tally
from jobs.lease import Timing, is_live, read_lease
from jobs.ledger import Ledger
from jobs.storage import Folder
from jobs.urls import Options
from s3gen.constants import SAMPLE_RATE


@dataclass(frozen=True, kw_only=True, slots=True)
class Status:
    """The state of a job. Rows count when their shard is committed."""

    state: Literal["running", "stopped", "finished"]
    shards_total: int
    shards_done: int
    rows_total: int  # all rows of the manifest
    rows_done: int  # synthesised
    rows_failed: int
    audio_seconds: float
    speed: float  # seconds of audio per second in which at least one committed shard was in work; 0 before the first
    eta_seconds: float | None  # at this speed and the mean length of a row so far; None before the first shard

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
    tally = Tally()
    for _ in tally.counting(ledger.records()):
        pass
    return Status(
        state="running" if is_live(read_lease(folder), timing) else "stopped",
        shards_total=len(ledger.plan),
        shards_done=tally.shards,
        rows_total=ledger.plan.rows,
        rows_done=tally.rows_done,
        rows_failed=tally.rows_failed,
        audio_seconds=tally.audio_seconds,
        speed=tally.speed,
        eta_seconds=_eta(tally, ledger.plan.rows),
    )


def _eta(tally: Tally, rows: int) -> float | None:
    seen = tally.rows_done + tally.rows_failed
    if not seen or not tally.speed:
        return None
    return (rows - seen) * (tally.audio_seconds / seen) / tally.speed
