"""The ledger of an output: what the job is, which shards are done, and how they become one finished output.

Layout under the output (nothing else knows it; use ``Ledger``):

    job.json                                the frozen job; created once, after the plan
    ledger/plan-<digest>.parquet            the plan
    ledger/lease/...                        who runs it (see ``lease``)
    audio/<shard>-<attempt>.<ext>           the audio of a shard
    ledger/index/<shard>-<attempt>.parquet  its part of the index
    ledger/failures/<shard>-<attempt>.parquet
    ledger/commits/<xx>/<shard>.json        its commit record: the shard is done when this is there
    ledger/finished.json                    the totals; the job is finished when this is there
    index.parquet, failures.parquet, duplicates.parquet

**Commit.** Each try at a shard writes under names of its own, and its commit record last. The record names every file
with size and sha256, so a reader that starts from records never meets a torn, half or foreign file. Records are spread
over 256 prefixes by a hash of the shard's number. What is committed is known from names alone.

**Two tries of one shard** happen: a worker that was given up for dead may still be writing. Which of them counts is
decided in one of two ways, chosen when the job begins, by a probe, and kept in ``job.json``.

Where the store has put-if-absent, ``<shard>.json`` is created with it: the first counts, for ever; the other finds that
it lost and deletes its files.

Where the store has not, tries write ``<shard>.<attempt>.json``, and the record that counts is the smallest attempt
among those present: readers and writers use the same rule on the same names. ``finalise`` writes each record that
counts once more, as ``<shard>.json``, which goes before all others, and from then on the choice cannot change. Why no
file that counts is ever deleted:

- Before ``<shard>.json`` is there, nobody deletes files of a committed try. A try that sees a smaller one has lost, but
  the end may have read the names before that one appeared, and be about to choose otherwise.
- After that the choice is fixed, whatever a late try still writes: this try loses, and clears its own files away.
- ``finalise`` runs under the lease, so only one run writes these names.

**Unknown outcomes.** ``StorageUnknown`` from a commit means that the record may be there: nothing is deleted, the shard
is done or not by what the names say, and tries that lost are cleared away at the end. A commit that is repeated by the
same attempt finds its own record and counts as won.

**Finishing** needs every shard committed, is done under the lease, and can be repeated after a kill at any point: the
tables, the totals, then the deletion of files that no record names. Once the totals are there, only the deletion is
repeated.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import secrets
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from typing import Any

from jobs.errors import InputError, StorageError, StorageUnknown, Unfinished
from jobs.finish import Summary, write_tables
from jobs.lease import Lease, Timing, take_lease
from jobs.manifest import ManifestFile
from jobs.plan import Plan
from jobs.records import Attempt, CommitRecord
from jobs.storage import Folder

JOB = "job.json"
FINISHED = "ledger/finished.json"
COMMITS = "ledger/commits/"
DATA = ("audio/", "ledger/index/", "ledger/failures/")
TABLES = ("index.parquet", "failures.parquet", "duplicates.parquet")
FORMAT_VERSION = 1
COMMIT_NAME = re.compile(r"^ledger/commits/[0-9a-f]{2}/(\d{7,})(?:\.([0-9a-f]+))?\.json$")

READ_THREADS = 16
SHOWN_FILES = 5  # of a manifest, in an error
READ_CHUNK = 512  # records in memory at a time

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
        return True

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
            raise InputError(f"{folder.url} was written by another version of s3gen (format {version})")
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

    def committed(self) -> set[int]:
        """The shards that are done, from key names alone."""
        return set(self.record_names())

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
        fixed, own = _record_name(attempt.shard), _record_name(attempt.shard, attempt.id)
        try:
            first = self.record_names(_record_prefix(attempt.shard)).get(attempt.shard, own)
            if first != fixed:
                return first == own, False
            won = self.read_record(attempt.shard, fixed).attempt == attempt.id
            if not won:
                self.folder.delete(own)
            return won, True
        except (StorageError, FileNotFoundError) as error:
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
        """The records that count, in shard order, some hundreds in memory at a time.

        Raises:
            StorageError: one is damaged, or of another plan.
        """
        names = sorted(self.record_names().items())
        with ThreadPoolExecutor(READ_THREADS) as pool:
            for first in range(0, len(names), READ_CHUNK):
                yield from pool.map(self._read_named, names[first : first + READ_CHUNK])

    def _read_named(self, item: tuple[int, str]) -> CommitRecord:
        return self.read_record(*item)

    def read_record(self, shard: int, name: str) -> CommitRecord:
        """The record of a shard, under the name that ``record_names`` gives.

        Raises:
            StorageError: it is damaged, or of another plan.
        """
        try:
            record = CommitRecord.from_bytes(self.folder.read(name))
        except ValueError as error:
            raise StorageError(f"{self.folder.path(name)} is damaged: {error}") from None
        if record.shard != shard or record.plan != self.plan.digest:
            raise StorageError(f"{self.folder.path(name)} is the record of shard {record.shard} of plan {record.plan}")
        return record

    def record_names(self, prefix: str = COMMITS) -> dict[int, str]:
        """By shard, the name of the record that counts among those present under ``prefix``."""
        found: dict[int, tuple[str, str]] = {}
        for name in self.folder.list(prefix):
            match = COMMIT_NAME.match(name)
            if match:
                shard, attempt = int(match[1]), match[2] or ""
                found[shard] = min(found.get(shard, (attempt, name)), (attempt, name))
        return {shard: name for shard, (_, name) in found.items()}

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
        """Holds the output's lease; while it does, ``finalise`` confirms it before each step that counts.

        Raises:
            LeaseHeld: another run renewed its lease while this one waited.
        """
        with take_lease(self.folder, on_wait=on_wait, timing=timing) as lease:
            self._lease = lease
            try:
                yield lease
            finally:
                self._lease = None

    def finalise(self) -> Summary:
        """Makes the tables of the whole job, marks it finished and clears away what no record names.

        On a finished job it only clears away.

        Raises:
            Unfinished: a shard is not committed.
            LeaseHeld: another run has taken over.
        """
        self._confirm()
        summary = self.summary()
        if summary is None:
            left = len(self.plan) - len(self.committed())
            if left:
                raise Unfinished(
                    f"{self.folder.url}: {left} of {len(self.plan)} shards are not done; "
                    f"go on with: s3gen resume {self.folder.url}"
                )
            self._fix_choices()
            summary = write_tables(self.folder, self.plan, self.records, self._confirm)
            self._confirm()
            self.folder.put(FINISHED, json.dumps(asdict(summary), indent=1).encode())
        self._clear_away()
        return summary

    def _confirm(self) -> None:
        if self._lease is not None:
            self._lease.confirm()

    def _fix_choices(self) -> None:
        """Gives every record that counts the name that counts for ever."""
        for shard, name in self.record_names().items():
            if name != _record_name(shard):
                self.folder.put(_record_name(shard), self.folder.read(name))

    def _clear_away(self) -> None:
        named = {file.name for record in self.records() for file in record.files()}
        self._confirm()
        for prefix in DATA:
            self._delete_all(name for name in self.folder.list(prefix) if name not in named)
        counting = set(self.record_names().values())
        self._delete_all(name for name in self.folder.list(COMMITS) if name not in counting)
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


def _record_prefix(shard: int) -> str:
    spread = hashlib.sha256(str(shard).encode()).hexdigest()[:2]
    return f"{COMMITS}{spread}/{shard:07d}."


def _record_name(shard: int, attempt: str | None = None) -> str:
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
