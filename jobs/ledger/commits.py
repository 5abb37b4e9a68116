"""What is committed: which shards of a plan are done, and by which of their tries.

**Commit.** Each try at a shard writes under names of its own, and its commit record last. The record names every file
with size and sha256, so a reader that starts from records never meets a torn, half or foreign file. What is committed
is known from names alone: those of a range of 1,000 shards have one prefix, so whoever looks lists some ranges at a
time, one page each, and keeps a bitmap.

**Two tries of one shard** happen: a worker that was given up for dead may still be writing. Which of them counts is
decided in one of two ways, chosen when the job begins, by a probe, and kept in ``job.json``.

Where the store has put-if-absent, ``<shard>.json`` is created with it: the first counts, for ever; the other finds that
it lost and deletes its files.

Where the store has not, tries write ``<shard>.<attempt>.json``, and the record that counts is the smallest attempt
among those present: readers and writers use the same rule on the same names. When every shard is committed,
``fix_choices`` writes the attempts that count into ``chosen-<generation>-<round>.json`` of each range, which goes
before that rule, and from then on the choice cannot change. Why no file that counts is ever deleted:

- Before a choice is there, nobody deletes files of a committed try. A try that sees a smaller one has lost, but
  the end may have read the names before that one appeared, and be about to choose otherwise.
- After that the choice is fixed, whatever a late try still writes: this try loses, and clears its own files away.
- Only the driver writes a choice, under the lease, which it confirms before each, where there is none, and under a name
  with the lease's generation. Should a write of a run that has lost the lease land late, it is of a lower generation
  than that of the run that has it, and the highest counts. Whoever clears a range away, more than once or late, works
  from the same choice. A range that a later round adds shards to gets another choice, which holds the one before.

**Unknown outcomes.** ``StorageUnknown`` from a commit means that the record may be there: nothing is deleted, the shard
is done or not by what the names say, and tries that lost are cleared away at the end. A commit that is repeated by the
same attempt finds its own record and counts as won.
"""

from __future__ import annotations

import contextlib
import json
import secrets
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from jobs.errors import StorageError, StorageUnknown
from jobs.ledger.layout import (
    COMMIT_NAME,
    DATA_NAME,
    DATA_PREFIXES,
    range_prefix,
    record_name,
    record_prefix,
)
from jobs.ledger.records import Attempt, CommitRecord
from jobs.manifest.manifest import Ints
from jobs.plan import RANGE_SHARDS, Plan, ShardSet
from jobs.storage.folders import Folder

READ_THREADS = 16
LIST_THREADS = 8  # each holds the names of a range


class Commits:
    """The commit records of one output.

    Args:
        plans: from which shard on records name which plan, by its digest (see ``rounds``).
        conditional: whether the store has put-if-absent.
    """

    def __init__(self, folder: Folder, plan: Plan, *, plans: Sequence[tuple[int, str]], conditional: bool) -> None:
        self.folder = folder
        self.plan = plan
        self.conditional = conditional
        self._plans = plans

    def digest_of(self, shard: int) -> str:
        """Of the plan that a record of this shard names."""
        return [digest for first, digest in self._plans if first <= shard][-1]

    def committed(self) -> ShardSet:
        """The shards that are done, from key names alone; some ranges' names are in memory at a time."""
        done = ShardSet(len(self.plan))
        with ThreadPoolExecutor(LIST_THREADS) as pool:
            for present in pool.map(self._present, range(self.plan.ranges)):
                done.add(present)
        return done

    def _present(self, number: int) -> Ints:
        """The shards of a range that have a record."""
        return np.array([shard for shard, _, _ in self._tries(number)], np.int64)

    def attempt(self, shard: int) -> Attempt:
        """A fresh try at a shard."""
        return Attempt(shard, secrets.token_hex(6))

    def commit(self, attempt: Attempt, record: CommitRecord) -> bool:
        """Makes a try count, after all files that ``record`` names are written.

        Returns:
            True when this try is the one that counts. False when another one does: the files of this one are deleted,
            now or at the end.

        Raises:
            ValueError: the record is not of this attempt, shard or plan.
            StorageError: it surely did not count; its files are as they were.
            StorageUnknown: it may count; delete nothing.
        """
        self._check_record(attempt, record)
        data = record.to_bytes()
        if self.conditional:
            won, final = self.folder.create(record_name(attempt.shard), data), True
        else:
            self.folder.put(record_name(attempt.shard, attempt.id), data)
            won, final = self._compared(attempt)
        if final and not won:
            self.discard(attempt, record)
        return won

    def _compared(self, attempt: Attempt) -> tuple[bool, bool]:
        """Whether a try whose record is written counts, and whether that is final."""
        try:
            chosen = self._chosen(attempt.shard // RANGE_SHARDS)
            if attempt.shard not in chosen:
                tries = self._tries(attempt.shard // RANGE_SHARDS, attempt.shard)
                return min((other for _, other, _ in tries), default=attempt.id) == attempt.id, False
            won = chosen[attempt.shard] == attempt.id
            if not won:
                self.folder.delete(record_name(attempt.shard, attempt.id))
            return won, True
        except StorageError as error:
            # The record is written: that it cannot be compared does not make the commit fail.
            raise StorageUnknown(
                f"whether shard {attempt.shard} is committed by this try is not known: {error}"
            ) from error

    def discard(self, attempt: Attempt, record: CommitRecord) -> None:
        """Deletes the files of a try that does not count; failing at it is no harm, the end clears them away."""
        for file in record.files():
            if attempt.stem in file.name:
                with contextlib.suppress(Exception):
                    self.folder.delete(file.name)

    def records(self) -> Iterator[CommitRecord]:
        """The records that count, in shard order, a range in memory at a time.

        Raises:
            StorageError: one is damaged, or of another plan.
        """
        return (record for number in range(self.plan.ranges) for record in self.read_range(number))

    def read_range(self, number: int) -> list[CommitRecord]:
        """The records of a range that count, in shard order. Raises as ``records``."""
        names = self.record_names(number)
        with ThreadPoolExecutor(READ_THREADS) as pool:
            return list(pool.map(self.read_record, names, names.values()))

    def read_some(self, shards: Iterable[int]) -> list[CommitRecord]:
        """The records of some shards, all committed, wherever they lie. Raises as ``records``."""
        with ThreadPoolExecutor(READ_THREADS) as pool:
            return list(pool.map(self._read_one, shards))

    def _read_one(self, shard: int) -> CommitRecord:
        name = record_name(shard)
        if not self.conditional:
            name = self.record_names(shard // RANGE_SHARDS, shard)[shard]
        return self.read_record(shard, name)

    def read_record(self, shard: int, name: str) -> CommitRecord:
        """The record of a shard, under the name that ``record_names`` gives.

        Raises:
            StorageError: it is gone, damaged, or of another plan.
        """
        try:
            record = CommitRecord.from_bytes(self.folder.read(name))
        except FileNotFoundError:
            raise StorageError(f"{self.folder.path(name)} is gone: shard {shard} was committed by it") from None
        except ValueError as error:
            raise StorageError(f"{self.folder.path(name)} is damaged: {error}") from None
        if record.shard != shard or record.plan != self.digest_of(shard):
            raise StorageError(f"{self.folder.path(name)} is the record of shard {record.shard} of plan {record.plan}")
        return record

    def record_names(self, number: int, shard: int | None = None) -> dict[int, str]:
        """By shard, in order, the name of the record that counts, of a range or of one shard in it."""
        chosen = {} if self.conditional else self._chosen(number)
        first: dict[int, tuple[str, str]] = {}
        for found, attempt, name in self._tries(number, shard):
            first[found] = min(first.get(found, (attempt, name)), (attempt, name))
        counting = {found: record_name(found, chosen[found]) for found in first if found in chosen}
        return {found: counting.get(found, name) for found, (_, name) in sorted(first.items())}

    def _tries(self, number: int, shard: int | None = None) -> list[tuple[int, str, str]]:
        """Shard, attempt (or nothing, where the store keeps the first) and name of each record present."""
        planned = self.plan.range(number)
        names = self.folder.list(range_prefix(number) if shard is None else record_prefix(shard))
        matches = [match for match in map(COMMIT_NAME.match, names) if match]
        return [(int(match[1]), match[2] or "", match[0]) for match in matches if int(match[1]) in planned]

    def _chosen(self, number: int) -> dict[int, str]:
        """By shard, the attempt that counts for ever; empty while that is not fixed."""
        names = self.folder.list(f"{range_prefix(number)}chosen-")
        if not names:
            return {}
        name = max(names)
        try:
            return {int(shard): str(attempt) for shard, attempt in json.loads(self.folder.read(name)).items()}
        except FileNotFoundError:
            raise StorageError(f"{self.folder.path(name)} is gone: it says which tries count") from None
        except (ValueError, AttributeError) as error:
            raise StorageError(f"{self.folder.path(name)} is damaged: {error}") from None

    def data_names(self, number: int) -> list[str]:
        """The files of a range's shards, whether a record names them or not."""
        planned = self.plan.range(number)
        names = [name for prefix in DATA_PREFIXES for name in self.folder.list(f"{prefix}{number:04d}")]
        # Shards beyond the ten millionth have eight digits, the first of which may be the same.
        return [name for name in names if (match := DATA_NAME.match(name)) and int(match[1]) in planned]

    def clear_range(self, number: int, records: Sequence[CommitRecord]) -> None:
        """Deletes the files and records of a range's tries that do not count.

        Args:
            records: all of the range, after ``fix_choices``.
        """
        named = {file.name for record in records for file in record.files()}
        attempts = {record.shard: "" if self.conditional else record.attempt for record in records}
        strays = [name for name in self.data_names(number) if name not in named]
        strays += [name for shard, attempt, name in self._tries(number) if attempt != attempts[shard]]
        self.delete_all(strays)

    def _check_record(self, attempt: Attempt, record: CommitRecord) -> None:
        if (record.shard, record.attempt, record.plan) != (attempt.shard, attempt.id, self.digest_of(attempt.shard)):
            raise ValueError(f"a record of shard {record.shard}, attempt {record.attempt} is not of {attempt}")
        if record.rows != record.rows_done + record.rows_failed or record.rows != self.plan.shard(record.shard).rows:
            raise ValueError(f"shard {record.shard}: {record.rows_done} + {record.rows_failed} rows of {record.rows}")

    def delete_all(self, names: Iterable[str]) -> None:
        """Deletes objects of the output, some at a time."""
        with ThreadPoolExecutor(READ_THREADS) as pool:
            list(pool.map(self.folder.delete, names))
