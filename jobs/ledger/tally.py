"""A job in numbers: sums over commit records, and the totals of a finished job."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from jobs.ledger.records import CommitRecord
from s3gen.constants import SAMPLE_RATE

Interval = tuple[float, float]  # unix times


@dataclass(frozen=True, kw_only=True, slots=True)
class Tally:
    """Sums over some commit records.

    Attributes:
        errors: rows that failed, by code.
        problems: rows that were made and do not pass a check, by its name.
        retries: how often their shards were handed out beyond the first time.
        positions, padding: of the vocoder, as the records have them.
        busy: when at least one of their shards was in work: apart from each other, ascending.
    """

    shards: int
    rows_done: int
    rows_failed: int
    samples: int
    errors: dict[str, int]
    problems: dict[str, int]
    retries: int
    positions: int
    padding: int
    busy: tuple[Interval, ...]

    @classmethod
    def of(cls, records: Sequence[CommitRecord], gap: float = 0.0) -> Tally:
        """Adds records up.

        Args:
            gap: seconds without work that count as work all the same; 0 when the records are all there are.
        """
        return cls(
            shards=len(records),
            rows_done=sum(record.rows_done for record in records),
            rows_failed=sum(record.rows_failed for record in records),
            samples=sum(record.samples for record in records),
            errors=summed(record.errors for record in records),
            problems=summed(record.problems for record in records),
            retries=sum(record.tries - 1 for record in records),
            positions=sum(record.positions for record in records),
            padding=sum(record.padding for record in records),
            busy=joined(((record.started_at, record.finished_at) for record in records), gap),
        )

    @classmethod
    def total(cls, tallies: Iterable[Tally]) -> Tally:
        """The sum of several; in memory are the busy times and one tally."""
        sums = cls.of([])
        for each in tallies:
            sums = cls(
                shards=sums.shards + each.shards,
                rows_done=sums.rows_done + each.rows_done,
                rows_failed=sums.rows_failed + each.rows_failed,
                samples=sums.samples + each.samples,
                errors=summed([sums.errors, each.errors]),
                problems=summed([sums.problems, each.problems]),
                retries=sums.retries + each.retries,
                positions=sums.positions + each.positions,
                padding=sums.padding + each.padding,
                busy=joined((*sums.busy, *each.busy)),
            )
        return sums

    @property
    def rows(self) -> int:
        """Rows of the manifest in all of the shards."""
        return self.rows_done + self.rows_failed

    @property
    def audio_seconds(self) -> float:
        """Seconds of audio in all records."""
        return self.samples / SAMPLE_RATE

    @property
    def speed(self) -> float:
        """Seconds of audio per second in which at least one of the shards was in work; 0 before the first.

        Pauses between runs do not count, nor does work that was lost.
        """
        busy = sum(end - start for start, end in self.busy)
        return self.audio_seconds / busy if busy > 0 else 0.0


def summed(counts: Iterable[Mapping[str, int]]) -> dict[str, int]:
    """Counts added up by their names, which come in order."""
    total: Counter[str] = Counter()
    for each in counts:
        total.update(each)
    return dict(sorted(total.items()))


def joined(intervals: Iterable[Interval], gap: float = 0.0) -> tuple[Interval, ...]:
    """The union of intervals, with gaps of up to ``gap`` closed: apart, ascending."""
    found: list[Interval] = []
    for start, end in sorted(intervals):
        if found and start <= found[-1][1] + gap:
            found[-1] = (found[-1][0], max(found[-1][1], end))
        else:
            found.append((start, end))
    return tuple(found)


@dataclass(frozen=True, kw_only=True, slots=True)
class Summary:
    """A finished job in numbers."""

    shards: int
    rows_total: int
    rows_done: int
    rows_failed: int
    duplicates: int  # rows whose id an earlier shard has too
    samples: int
    errors: dict[str, int]  # rows that failed, by code
    problems: dict[str, int]  # rows that were made and do not pass a check, by its name
    retries: int  # how often shards were handed out beyond the first time
    positions: int  # that the vocoder was given, padding included; of the tries that count
    padding: int  # among them
    speed: float  # seconds of audio per second in which at least one shard was in work
    failures_sha256: str  # of the failures table
    finished_at: float

    @property
    def exit_code(self) -> int:
        """0 when every row was synthesised under an id of its own, else 3."""
        return 3 if self.rows_failed or self.duplicates else 0
