"""A trial of a job's first rows: where it is, and what it says, finished, of the speed of the whole job."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
import pyarrow.compute as pc

from jobs.config.config import JobConfig
from jobs.formats.writers import pick
from jobs.ledger.ledger import Ledger
from jobs.ledger.parts import read_shards
from jobs.ledger.records import CommitRecord
from jobs.ledger.tally import Tally
from jobs.manifest.token_lists import TokenLists
from jobs.storage.folders import Folder
from s3gen.constants import TOKEN_RATE

UNFIT = frozenset({"bad_audio", "not_finite", "wrong_length"})  # codes of rows that fail once their audio is made
MOST_RECORDS = 1_000
LONG_ENOUGH = 60.0  # seconds of work


def trial_output(output: str, limit: int) -> str:
    """Where `--limit` puts its trial: beside the output, which stays free for the whole job."""
    return f"{output.rstrip('/')}-trial-{limit}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Trial:
    """The speed of a trial.

    Attributes:
        speed: x real time of one GPU, or of one worker where there are none: what `plan --speed` takes. As there, it
            is of audio before it is trimmed, and rows count whose audio was made and then found unfit.
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
    audio += _trimmed_seconds(ledger.folder, config, records) + _unfit_seconds(ledger.folder, config, records)
    if not audio or seconds <= 0:
        return None
    on_gpus = ledger.job["gpus"] > 0
    # A worker that was alone on its GPU had all of it.
    share = max(config.gpus_per_worker, 1 / len(by_worker)) if on_gpus else 1.0
    return Trial(speed=audio / seconds / share, seconds=seconds, unit="GPU" if on_gpus else "worker")


def _trimmed_seconds(folder: Folder, config: JobConfig, records: Sequence[CommitRecord]) -> float:
    """Of audio that was made and cut off as silence."""
    if config.wave.trim_db is None:
        return 0.0
    parts = read_shards(folder, (record.index for record in records))
    samples = sum(pc.sum(part[name]).as_py() for part in parts for name in ("trimmed_start", "trimmed_end"))
    return samples / config.wave.sample_rate


def _unfit_seconds(folder: Folder, config: JobConfig, records: Sequence[CommitRecord]) -> float:
    """Of the audio of rows that then failed, as long as their tokens ask for."""
    parts = read_shards(folder, (record.failures for record in records if record.errors.keys() & UNFIT))
    seconds = 0.0
    for part in parts:
        rows = np.flatnonzero([code in UNFIT for code in part["error"].to_pylist()])
        tokens = TokenLists.of(pick(part, rows.tolist())["tokens"])
        seconds += (len(tokens.kept) + len(config.tail) * len(rows)) / TOKEN_RATE
    return seconds
