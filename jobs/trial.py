"""A trial of a job's first rows: where it is, and what it says, finished, of the speed of the whole job."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from itertools import islice

from jobs.config.config import JobConfig
from jobs.ledger.ledger import Ledger
from jobs.ledger.records import CommitRecord
from jobs.ledger.tally import Tally
from jobs.storage.folders import Folder

MOST_RECORDS = 1_000
LONG_ENOUGH = 60.0  # seconds of work


def trial_output(output: str, limit: int) -> str:
    """Where `--limit` puts its trial: beside the output, which stays free for the whole job."""
    return f"{output.rstrip('/')}-trial-{limit}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Trial:
    """The speed of a trial.

    Attributes:
        speed: x real time of one GPU, or of one worker where there are none: what `plan --speed` takes.
        seconds: that its workers were at work, all together.
        unit: what the speed is of.
    """

    speed: float
    seconds: float
    unit: str

    @property
    def is_short(self) -> bool:
        """Whether the whole job may be much faster: its batches are larger."""
        return self.seconds < LONG_ENOUGH


def trial_of(config: JobConfig, output: str) -> Trial | None:
    """Reads the records of a finished trial, a thousand at most; None where no audio was made.

    Args:
        config: the job's.
        output: the trial's own.
    """
    ledger = Ledger.open(Folder(output, config.storage_options))
    records = ledger.read_some(islice(ledger.committed(), MOST_RECORDS))
    by_worker: dict[str, list[CommitRecord]] = defaultdict(list)
    for record in records:
        by_worker[record.worker].append(record)
    busy = [Tally.of(own).busy for own in by_worker.values()]
    seconds = sum(end - start for intervals in busy for start, end in intervals)
    audio = Tally.of(records).audio_seconds
    if not audio or seconds <= 0:
        return None
    on_gpus = ledger.job["gpus"] > 0
    # A worker that was alone on its GPU had all of it.
    share = max(config.gpus_per_worker, 1 / len(by_worker)) if on_gpus else 1.0
    return Trial(speed=audio / seconds / share, seconds=seconds, unit="GPU" if on_gpus else "worker")
