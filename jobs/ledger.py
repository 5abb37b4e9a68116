"""The ledger of an output: what the job is and which shards are done.

Layout under the output (nothing else knows it; use ``Ledger``):

    job.json                                the frozen job; created once, after the plan
    ledger/plan-<digest>.parquet            the plan
    ledger/lease/...                        who runs it (see ``lease``)
    audio/<shard>-<attempt>.<ext>           the audio of a shard
    ledger/index/<shard>-<attempt>.parquet  its part of the index
    ledger/failures/<shard>-<attempt>.parquet
    ledger/commits/<range>/<shard>.json     its commit record: the shard is done when this is there
    ledger/finish/...                       what the end of the job leaves while it is under way (see ``finish``)
    ledger/finished.json                    the totals; the job is finished when this is there
    index.parquet, failures.parquet, duplicates.parquet

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
``fix_choices`` writes the attempts that count into ``chosen-<generation>.json`` of each range, which goes before that
rule, and from then on the choice cannot change. Why no file that counts is ever deleted:

- Before a choice is there, nobody deletes files of a committed try. A try that sees a smaller one has lost, but
  the end may have read the names before that one appeared, and be about to choose otherwise.
- After that the choice is fixed, whatever a late try still writes: this try loses, and clears its own files away.
- Only the driver writes a choice, under the lease, which it confirms before each, where there is none, and under a name
  with the lease's generation. Should a write of a run that has lost the lease land late, it is of a lower generation
  than that of the run that has it, and the highest counts. Whoever clears a range away, more than once or late, works
  from the same choice.

**Unknown outcomes.** ``StorageUnknown`` from a commit means that the record may be there: nothing is deleted, the shard
is done or not by what the names say, and tries that lost are cleared away at the end. A commit that is repeated by the
same attempt finds its own record and counts as won.
"""

from __future__ import annotations

import contextlib
import json
import re
import secrets
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from typing import Any

import numpy as np

from jobs.errors import InputError, StorageError, StorageUnknown, Unfinished
from jobs.lease import Lease, Timing, take_lease
from jobs.manifest import Ints, ManifestFile
from jobs.plan import RANGE_SHARDS, Plan, ShardSet
from jobs.records import Attempt, CommitRecord
from jobs.storage import Folder
from jobs.tally import Summary

JOB = "job.json"
FINISHED = "ledger/finished.json"
COMMITS = "ledger/commits/"
FINISH = "ledger/finish/"
DATA = ("audio/", "ledger/index/", "ledger/failures/")
INDEX, FAILURES, DUPLICATES = TABLES = ("index.parquet", "failures.parquet", "duplicates.parquet")
FORMAT_VERSION = 2
COMMIT_NAME = re.compile(r"^ledger/commits/\d{4,}/(\d{7,})(?:\.([0-9a-f]+))?\.json$")
DATA_NAME = re.compile(r"^(?:audio|ledger/index|ledger/failures)/(\d{7,})-[^/]*$")

READ_THREADS = 16
LIST_THREADS = 8  # each holds the names of a range
SHOWN_FILES = 5  # of a manifest, in an error

# Of the job's configuration: what may be another on a resume, since no sample depends on it (``batch`` moves samples
# within the batch tolerance).
MAY_CHANGE = frozenset({"workers", "gpus_per_worker", "ray_address", "stall_seconds", "log_level", "batch"})
COMPARED = ("config", "fingerprints", "limit")


class Ledger:
    """The state of one output. ``start`` or ``open`` makes it."""

    def __init__(self, folder: Folder, job: Mapping[str, Any], plan: Plan) -> None:
        self.folder = folder
        self.job = dict(job)
        self.plan = plan
        self._lease: Lease | None = None

    @classmethod
    def start(cls, folder: Folder, job: Mapping[str, Any], plan: Plan) -> Ledger:
        """Begins a job in an empty output; when another run begins the same one at this moment, joins it.

        Args:
            job: plain JSON values: ``config`` (``JobConfig.frozen``), ``fingerprints``, ``versions``, ``limit``. The
                plan's digest is added.

        Raises:
            InputError: the output holds something else, or another job.
        """
        try:
            begun = exists(folder) or not cls._begin(folder, job, plan)
        except StorageError as error:
            # Nothing is there yet: a wrong place, wrong rights or wrong options, which a resume would not mend.
            raise InputError(str(error)) from error
        ledger = cls.open(folder)
        if begun:
            ledger.check_unchanged(job, plan)
        return ledger

    @staticmethod
    def _begin(folder: Folder, job: Mapping[str, Any], plan: Plan) -> bool:
        _refuse_foreign(folder)
        described = {**job, "plan": plan.digest, "version": FORMAT_VERSION, "created_at": time.time()}
        described["conditional"] = folder.can_create()
        data = json.dumps(described, indent=1, sort_keys=True).encode()
        folder.put(_plan_name(plan.digest), plan.to_bytes())
        if described["conditional"]:
            return folder.create(JOB, data)
        folder.put(JOB, data)
        return False  # another run may have begun another job at this moment: looked at again

    @classmethod
    def open(cls, folder: Folder) -> Ledger:
        """The job that was begun in an output.

        Raises:
            InputError: there is none, or it is damaged.
        """
        try:
            job = json.loads(folder.read(JOB))
            version, digest, _ = job["version"], job["plan"], job["conditional"]
        except FileNotFoundError:
            raise InputError(f"{folder.url}: no job was begun here (there is no {JOB})") from None
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"{folder.path(JOB)} is damaged: {error}") from None
        if version != FORMAT_VERSION:
            raise InputError(
                f"{folder.url} was begun by another version of s3gen (format {version}, not {FORMAT_VERSION}); "
                "finish it with that one, or choose another output"
            )
        try:
            plan = Plan.from_bytes(folder.read(_plan_name(digest)))
        except FileNotFoundError:
            raise InputError(f"{folder.url}: the job's plan {_plan_name(digest)} is missing") from None
        if plan.digest != digest:
            raise InputError(f"{folder.url}: {JOB} names the plan {digest}, its file holds {plan.digest}")
        return cls(folder, job, plan)

    def check_unchanged(self, job: Mapping[str, Any], plan: Plan | None = None) -> None:
        """Refuses to go on as another job than the one that was begun.

        Args:
            job: as for ``start``; of what it lacks nothing is compared.
            plan: made from the inputs as they are now.

        Raises:
            InputError: lists each key that differs, what it was and what it is now.
        """
        now = json.loads(json.dumps(dict(job)))
        found = [d for part in COMPARED if part in now for d in _differences(part, self.job.get(part), now[part])]
        if plan is not None and plan.digest != self.plan.digest:
            found += _plan_differences(self.plan, plan)
        if found:
            lines = "\n".join(f"  {key}: was {was}, is {is_now}" for key, was, is_now in found)
            raise InputError(f"{self.folder.url} was begun as another job:\n{lines}\nundo this, or use another output")

    # --- shards -------------------------------------------------------------------------------------------------------

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
        if self.job["conditional"]:
            won, final = self.folder.create(_record_name(attempt.shard), data), True
        else:
            self.folder.put(_record_name(attempt.shard, attempt.id), data)
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
                self.folder.delete(_record_name(attempt.shard, attempt.id))
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
        name = _record_name(shard)
        if not self.job["conditional"]:
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
        if record.shard != shard or record.plan != self.plan.digest:
            raise StorageError(f"{self.folder.path(name)} is the record of shard {record.shard} of plan {record.plan}")
        return record

    def record_names(self, number: int, shard: int | None = None) -> dict[int, str]:
        """By shard, in order, the name of the record that counts, of a range or of one shard in it."""
        chosen = {} if self.job["conditional"] else self._chosen(number)
        first: dict[int, tuple[str, str]] = {}
        for found, attempt, name in self._tries(number, shard):
            first[found] = min(first.get(found, (attempt, name)), (attempt, name))
        counting = {found: _record_name(found, chosen[found]) for found in first if found in chosen}
        return {found: counting.get(found, name) for found, (_, name) in sorted(first.items())}

    def _tries(self, number: int, shard: int | None = None) -> list[tuple[int, str, str]]:
        """Shard, attempt (or nothing, where the store keeps the first) and name of each record present."""
        planned = self.plan.range(number)
        names = self.folder.list(_range_prefix(number) if shard is None else _record_prefix(shard))
        matches = [match for match in map(COMMIT_NAME.match, names) if match]
        return [(int(match[1]), match[2] or "", match[0]) for match in matches if int(match[1]) in planned]

    def _chosen(self, number: int) -> dict[int, str]:
        """By shard, the attempt that counts for ever; empty while that is not fixed."""
        names = self.folder.list(f"{_range_prefix(number)}chosen-")
        if not names:
            return {}
        name = max(names)
        try:
            return {int(shard): str(attempt) for shard, attempt in json.loads(self.folder.read(name)).items()}
        except FileNotFoundError:
            raise StorageError(f"{self.folder.path(name)} is gone: it says which tries count") from None
        except (ValueError, AttributeError) as error:
            raise StorageError(f"{self.folder.path(name)} is damaged: {error}") from None

    def _check_record(self, attempt: Attempt, record: CommitRecord) -> None:
        if (record.shard, record.attempt, record.plan) != (attempt.shard, attempt.id, self.plan.digest):
            raise ValueError(f"a record of shard {record.shard}, attempt {record.attempt} is not of {attempt}")
        if record.rows != record.rows_done + record.rows_failed or record.rows != self.plan.shard(record.shard).rows:
            raise ValueError(f"shard {record.shard}: {record.rows_done} + {record.rows_failed} rows of {record.rows}")

    # --- the end ------------------------------------------------------------------------------------------------------

    def summary(self) -> Summary | None:
        """The totals of a finished job; None while it is not."""
        try:
            return Summary(**json.loads(self.folder.read(FINISHED)))
        except FileNotFoundError:
            return None
        except (ValueError, TypeError) as error:
            raise StorageError(f"{self.folder.path(FINISHED)} is damaged: {error}") from None

    @contextlib.contextmanager
    def lease(
        self, *, on_wait: Callable[[str], None] = lambda text: None, timing: Timing | None = None
    ) -> Iterator[Lease]:
        """Holds the output's lease, which ``confirm`` then asks for.

        Raises:
            LeaseHeld: another run renewed its lease while this one waited.
        """
        with take_lease(self.folder, on_wait=on_wait, timing=timing) as lease:
            self._lease = lease
            try:
                yield lease
            finally:
                self._lease = None

    def confirm(self) -> None:
        """Returns when this run may still write; outside of ``lease`` always.

        Raises:
            LeaseHeld: another run has taken over.
        """
        if self._lease is not None:
            self._lease.confirm()

    def require_all(self) -> None:
        """Returns when every shard is committed.

        Raises:
            Unfinished: one is not.
        """
        left = len(self.plan) - len(self.committed())
        if left:
            raise Unfinished(
                f"{self.folder.url}: {left} of {len(self.plan)} shards are not done; "
                f"go on with: s3gen resume {self.folder.url}"
            )

    def fix_choices(self) -> None:
        """Makes the choice among the tries of each shard one for ever; every shard is committed.

        Raises:
            LeaseHeld: another run has taken over.
        """
        if self.job["conditional"]:
            return
        for number in range(self.plan.ranges):
            if not self._chosen(number):
                matches = {shard: COMMIT_NAME.match(name) for shard, name in self.record_names(number).items()}
                attempts = {shard: match[2] for shard, match in matches.items() if match}
                if len(attempts) < len(self.plan.range(number)):
                    raise StorageError(f"{self.folder.url}: records of shards that were committed are gone")
                self.confirm()
                generation = 0 if self._lease is None else self._lease.generation
                self.folder.put(_chosen_name(number, generation), json.dumps(attempts).encode())

    def data_names(self, number: int) -> list[str]:
        """The files of a range's shards, whether a record names them or not."""
        planned = self.plan.range(number)
        names = [name for prefix in DATA for name in self.folder.list(f"{prefix}{number:04d}")]
        # Shards beyond the ten millionth have eight digits, the first of which may be the same.
        return [name for name in names if (match := DATA_NAME.match(name)) and int(match[1]) in planned]

    def clear_range(self, number: int, records: Sequence[CommitRecord]) -> None:
        """Deletes the files and records of a range's tries that do not count.

        Args:
            records: all of the range, after ``fix_choices``.
        """
        named = {file.name for record in records for file in record.files()}
        attempts = {record.shard: "" if self.job["conditional"] else record.attempt for record in records}
        strays = [name for name in self.data_names(number) if name not in named]
        strays += [name for shard, attempt, name in self._tries(number) if attempt != attempts[shard]]
        self._delete_all(strays)

    def finish(self, summary: Summary) -> None:
        """Marks the job as finished."""
        self.folder.put(FINISHED, json.dumps(asdict(summary), indent=1).encode())

    def clear_finish(self) -> None:
        """Deletes what the end of the job needed while it was under way, and what killed writers left."""
        self._delete_all(self.folder.list(FINISH))
        self.folder.delete_partial()

    def _delete_all(self, names: Iterable[str]) -> None:
        with ThreadPoolExecutor(READ_THREADS) as pool:
            list(pool.map(self.folder.delete, names))


def exists(folder: Folder) -> bool:
    """Whether a job was begun in this output."""
    return folder.exists(JOB)


def _refuse_foreign(folder: Folder) -> None:
    """An output is cleared of files that no record names: it must not be somebody's folder of recordings."""
    for prefix in (*DATA, COMMITS, *TABLES):
        found = folder.list(prefix)
        if found:
            raise InputError(
                f"{folder.url}: there is no {JOB}, but {found[0]}: this is another folder, or what is left of a job; "
                "choose an empty output"
            )


def _plan_name(digest: str) -> str:
    return f"ledger/plan-{digest[:32]}.parquet"


def _range_prefix(number: int) -> str:
    return f"{COMMITS}{number:04d}/"


def _chosen_name(number: int, generation: int) -> str:
    return f"{_range_prefix(number)}chosen-{generation:08d}.json"


def _record_prefix(shard: int) -> str:
    return f"{_range_prefix(shard // RANGE_SHARDS)}{shard:07d}."


def _record_name(shard: int, attempt: str = "") -> str:
    return f"{_record_prefix(shard)}{attempt}.json" if attempt else f"{_record_prefix(shard)}json"


def _differences(key: str, was: Any, now: Any) -> list[tuple[str, str, str]]:
    if isinstance(was, Mapping) and isinstance(now, Mapping):
        names = sorted({*was, *now})
        return [
            difference
            for name in names
            if not (key == "config" and name in MAY_CHANGE)
            for difference in _differences(f"{key}.{name}".removeprefix("config."), was.get(name), now.get(name))
        ]
    return [] if was == now else [(key, json.dumps(was), json.dumps(now))]


def _plan_differences(was: Plan, now: Plan) -> list[tuple[str, str, str]]:
    old, new = ({file.url: file for file in plan.manifest.files} for plan in (was, now))
    changed = [url for url in sorted({*old, *new}) if old.get(url) != new.get(url)]
    found = [(f"manifest {url}", _file_text(old.get(url)), _file_text(new.get(url))) for url in changed]
    if len(found) > SHOWN_FILES:
        found = [*found[:SHOWN_FILES], ("manifest", f"{len(found) - SHOWN_FILES} more files as planned", "changed too")]
    return found or [("plan", f"{len(was)} shards of {was.rows} rows", f"{len(now)} shards of {now.rows} rows")]


def _file_text(file: ManifestFile | None) -> str:
    if file is None:
        return "absent"
    return f"{file.rows} rows in {file.size} bytes (version {file.etag}, footer {file.footer_digest[:12]})"
