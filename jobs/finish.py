"""The end of a job: what its shards left becomes the tables of the whole output, and what no record names goes.

The work is done in tasks, by workers where there is much of it and in this process where there is little, with the same
result. A task holds the parts of some shards, and 24 bytes for each row of its range or id of its partition; the driver
holds a few numbers of each range and partition.

1. A range of shards: reads its commit records; deletes the files of tries that do not count; writes its part of the
   index and of the failures, and the digests of its ids by partition.
2. A partition of all ids: finds those that occur again, and where (see ``duplicates``).
3. A range that has some of those: writes its part of the list of them.
4. A table: its parts become one file. An index of more than ``SINGLE_FILE_ROWS`` rows stays a folder of parts.
5. The card of a job of speech, which counts what is in the index; one that cannot be written for any reason but the
   store's is left out.

A job that has taken up rows again comes to another end (see ``rounds``). Then all of this is done once more, over all
shards: the index gets the rows that were made, and of the failures those stay that were not taken up.

Then the driver writes the totals, which is when the job is finished, and deletes what the tasks left for each other.

Killed at any point, all is done again. A task may run twice, at the same time or late, by a worker that was given up
for dead: whatever it writes follows from commit records that no longer change, so it writes the same again, and what it
deletes counts for nobody (see ``commits``). One that comes so late that another round has begun finds that out before
it replaces a table, and its other files have names of their own.
"""

from __future__ import annotations

import logging
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from jobs import duplicates
from jobs.card import write_card
from jobs.crew.pulse import Pulse
from jobs.duplicates import ENTRY, PLACE, Grouped, Slice
from jobs.errors import StorageError, StorageUnknown
from jobs.ledger.layout import DUPLICATES, FAILURES, FINISH, INDEX, finish_prefix
from jobs.ledger.ledger import Ledger
from jobs.ledger.parts import READ_GROUP_ROWS, ROW_GROUP_ROWS, Part, read_parts, read_shards, write_table
from jobs.ledger.records import CommitRecord
from jobs.ledger.tables import remaining
from jobs.ledger.tally import Summary, Tally
from jobs.storage.folders import Folder
from jobs.storage.urls import Options
from s3gen.card_mark import CARD

SINGLE_FILE_ROWS = 10_000_000  # of an index that is one file

log = logging.getLogger(__name__)


# --- tasks and their reports ------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Gather:
    """Everything about one range of shards."""

    range: int

    def __str__(self) -> str:
        return f"range {self.range} of the shards"


@dataclass(frozen=True, slots=True)
class Gathered:
    """What a range has left. The index has a part in any case when it stays a folder."""

    range: int
    tally: Tally
    index: Part | None
    failures: Part | None
    ids: Grouped  # by partition


@dataclass(frozen=True, slots=True)
class Compare:
    """Looks for ids that occur again in one partition: its slice of each range's ids, in the order of ranges."""

    partition: int
    slices: Sequence[Slice]

    def __str__(self) -> str:
        return f"partition {self.partition} of the ids"


@dataclass(frozen=True, slots=True)
class Pick:
    """Lists a range's rows whose ids were there before: its slice of what each partition found."""

    range: int
    index: Part
    slices: Sequence[Slice]

    def __str__(self) -> str:
        return f"doubled ids of range {self.range}"


@dataclass(frozen=True, slots=True)
class Join:
    """Makes one file of a table's parts."""

    table: str
    parts: Sequence[Part]

    def __str__(self) -> str:
        return self.table


@dataclass(frozen=True, slots=True)
class Describe:
    """Writes the card of a job of speech, from its index and totals."""

    summary: Summary

    def __str__(self) -> str:
        return CARD


Task = Gather | Compare | Pick | Join | Describe
# Does tasks, in any order, and gives their reports in theirs.
Work = Callable[[Sequence[Task]], Sequence[Any]]


# --- the tasks --------------------------------------------------------------------------------------------------------


class Finisher:
    """Does the tasks of the end of one job; what a worker is for the shards.

    Attributes:
        pulse: moves on with each some thousand rows.
    """

    def __init__(self, ledger: Ledger) -> None:
        self.pulse = Pulse()
        self._ledger, self._folder, self._tables = ledger, ledger.folder, ledger.tables
        self._prefix = finish_prefix(len(ledger.rounds))

    @classmethod
    def open(cls, *, output: str, options: Options) -> Finisher:
        """For the job in an output."""
        return cls(Ledger.open(Folder(output, options)))

    def run(self, task: Task) -> Gathered | Grouped | Part | None:
        """Does one task.

        Raises:
            StorageError: something that was committed, or written by another task, is gone or damaged.
        """
        with tempfile.TemporaryDirectory(prefix="s3gen-") as folder:
            scratch = Path(folder) / "table"
            match task:
                case Gather():
                    return self._gather(task.range, scratch)
                case Compare():
                    return self._compare(task)
                case Pick():
                    return self._pick(task, scratch)
                case Join():
                    return self._join(task, scratch)
                case Describe():
                    self._describe(task.summary)
                    return None

    def _gather(self, number: int, scratch: Path) -> Gathered:
        ledger = self._ledger
        records = ledger.read_range(number)
        if len(records) < len(ledger.plan.range(number)):
            gone = set(ledger.plan.range(number)) - {record.shard for record in records}
            raise StorageError(f"{self._folder.url}: the commit record of shard {min(gone)} is gone")
        ledger.clear_range(number, records)
        index, ids = self._gather_index(number, records, scratch)
        failures = None
        if any(record.failures for record in records):
            name = f"{self._prefix}failures-{number:04d}.parquet"
            failures = self._upload(self._folder, name, self._tables.failures, self._failures(records), scratch)
        return Gathered(number, Tally.of(records), index, failures, ids)

    def _failures(self, records: Sequence[CommitRecord]) -> Iterator[pa.Table]:
        shards = [record.shard for record in records if record.failures]
        tables = read_shards(self._folder, (record.failures for record in records))
        for shard, table in zip(shards, tables, strict=True):
            yield remaining(table, shard, self._ledger.plan)

    def _gather_index(self, number: int, records: Sequence[CommitRecord], scratch: Path) -> tuple[Part | None, Grouped]:
        """The range's part of the index, and its ids by partition."""
        found: list[duplicates.Records] = []

        def noting() -> Iterator[pa.Table]:
            row = 0
            for table in read_shards(self._folder, (record.index for record in records)):
                found.append(duplicates.entries(table["id"], row))
                row += table.num_rows
                yield table

        index = None
        if stays_in_parts(self._ledger) or any(record.index for record in records):
            folder, name = self._index_part(number)
            index = self._upload(folder, name, self._tables.index, noting(), scratch)
        count = duplicates.partitions(self._ledger.plan.rows)
        ids = np.concatenate(found) if found else np.empty(0, ENTRY)
        groups = duplicates.partition_of(ids, count)
        return index, duplicates.write_grouped(self._folder, f"{self._prefix}ids-{number:04d}", ids, groups, count)

    def _compare(self, task: Compare) -> Grouped:
        ids = [duplicates.read_slice(self._folder, part, ENTRY) for part in task.slices]
        places = duplicates.repeated(ids, range(len(ids)))
        name, groups = f"{self._prefix}doubled-{task.partition:04d}", places["range"].astype(np.int64)
        return duplicates.write_grouped(self._folder, name, places, groups, len(ids))

    def _pick(self, task: Pick, scratch: Path) -> Part:
        places = [duplicates.read_slice(self._folder, part, PLACE) for part in task.slices]
        rows = np.sort(np.concatenate(places)["row"]).astype(np.int64)

        def picked() -> Iterator[pa.Table]:
            at = 0
            for table in read_parts(self._index_part(task.range)[0], [task.index], self._tables.duplicates.names):
                low, high = np.searchsorted(rows, (at, at + table.num_rows))
                if low < high:
                    yield table.take(pa.array(rows[low:high] - at))
                at += table.num_rows

        name = f"{self._prefix}duplicates-{task.range:04d}.parquet"
        return self._upload(self._folder, name, self._tables.duplicates, picked(), scratch)

    def _join(self, task: Join, scratch: Path) -> Part:
        folder, name = self._ledger.public_index if task.table == INDEX else (self._folder, task.table)
        tables = {INDEX: self._tables.index, FAILURES: self._tables.failures, DUPLICATES: self._tables.duplicates}
        return self._upload(folder, name, tables[task.table], read_parts(self._folder, task.parts), scratch)

    def _describe(self, summary: Summary) -> None:
        """Writes the card, if it can be: what is made is finished without one."""
        try:
            write_card(self._ledger, summary)
        except (StorageError, StorageUnknown):
            raise  # the tables are read for it
        except Exception as error:
            reason = f"{type(error).__name__}: {error}"
            log.warning("%s is not written, which changes nothing else: %s", self._folder.path(CARD), reason)
            log.debug("where this came from:", exc_info=True)

    def _index_part(self, number: int) -> tuple[Folder, str]:
        """Where a range's part of the index goes: to its place, where that is a folder of parts."""
        if not stays_in_parts(self._ledger):
            return self._folder, f"{self._prefix}index-{number:04d}.parquet"
        folder, name = self._ledger.public_index
        return folder, f"{name}/part-{number:04d}.parquet"

    def _upload(self, folder: Folder, name: str, schema: pa.Schema, tables: Iterable[pa.Table], scratch: Path) -> Part:
        size = ROW_GROUP_ROWS if self._ledger.kind == "synth" else READ_GROUP_ROWS
        part = write_table(name, schema, self._felt(tables), scratch, group_rows=size)
        if not name.startswith(FINISH):
            self._ledger.require_round()
        folder.upload(name, scratch)
        return part

    def _felt(self, tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
        for table in tables:
            self.pulse.beat()
            yield table


def stays_in_parts(ledger: Ledger) -> bool:
    """Whether the index of a job is a folder of parts: where it is large, or asked for as one."""
    return ledger.plan.rows_total > SINGLE_FILE_ROWS or not ledger.public_index[1].endswith(".parquet")


# --- the driver -------------------------------------------------------------------------------------------------------


def finalise(ledger: Ledger, work: Work | None = None) -> Summary:
    """Makes the tables of the whole job, clears away what no record names and marks the job as finished.

    Of a finished job it only deletes what late workers of its end left behind.

    Args:
        work: does the tasks; without, this process does.

    Raises:
        Unfinished: a shard is not committed.
        LeaseHeld: another run has taken over.
        StorageError: something that was committed is gone or damaged.
    """
    ledger.confirm()
    summary = ledger.summary()
    if summary is None:
        ledger.require_all()
        ledger.fix_choices()
        work = work or _here(ledger)
        summary = _make_tables(ledger, work)
        if ledger.kind == "synth":
            work([Describe(summary)])
        ledger.confirm()
        # Before it is finished, since few come back to a finished job. Killed in between, the end is made again.
        ledger.clear_finish()
        ledger.finish(summary)
    else:
        ledger.clear_finish()
    return summary


def _here(ledger: Ledger) -> Work:
    finisher = Finisher(ledger)
    return lambda tasks: [finisher.run(task) for task in tasks]


def _make_tables(ledger: Ledger, work: Work) -> Summary:
    ledger.confirm()
    gathered: Sequence[Gathered] = work([Gather(number) for number in range(ledger.plan.ranges)])
    doubled = _doubled(ledger, gathered, work)
    joins = []
    if not stays_in_parts(ledger):
        joins.append(Join(INDEX, [each.index for each in gathered if each.index]))
    if doubled:
        joins.append(Join(DUPLICATES, doubled))
    # Last, where they are made one after the other: better that a row is in both than in none.
    joins.append(Join(FAILURES, [each.failures for each in gathered if each.failures]))
    ledger.confirm()
    if not doubled:
        ledger.folder.delete(DUPLICATES)
    written: Sequence[Part] = work(joins)
    tally = Tally.total(each.tally for each in gathered)
    failed = ledger.not_taken_up(tally.errors)
    return Summary(
        shards=tally.shards,
        rows_total=ledger.plan.rows_total,
        rows_done=tally.rows_done,
        rows_failed=sum(failed.values()),
        duplicates=sum(part.rows for part in doubled),
        samples=tally.samples,
        errors=failed,
        problems=tally.problems,
        retries=tally.retries,
        positions=tally.positions,
        padding=tally.padding,
        speed=tally.speed,
        failures_sha256=written[-1].sha256,
        finished_at=time.time(),
    )


def _doubled(ledger: Ledger, gathered: Sequence[Gathered], work: Work) -> list[Part]:
    """The parts of the list of doubled ids, of the ranges that have any."""
    count = duplicates.partitions(ledger.plan.rows)
    places: Sequence[Grouped] = work(
        [Compare(partition, [each.ids.slice(partition) for each in gathered]) for partition in range(count)]
    )
    picks = []
    for each in gathered:
        slices = [part for found in places if (part := found.slice(each.range)).start < part.stop]
        if slices and each.index is not None:
            picks.append(Pick(each.range, each.index, slices))
    ledger.confirm()
    return list(work(picks)) if picks else []
