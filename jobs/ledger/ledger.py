"""The ledger of an output: what the job is and which shards are done.

Layout under the output (nothing else knows it; use ``Ledger``):

    job.json                                the frozen job; created once, after the plan
    ledger/plan-<digest>.parquet            the plan
    ledger/lease/...                        who runs it (see ``lease``)
    audio/<shard>-<attempt>.<ext>           the audio of a shard; in the format lhotse two files, named
                                            ``recording.<shard>-<attempt>.tar``, ``cuts.<shard>-<attempt>.jsonl.gz``
    ledger/index/<shard>-<attempt>.parquet  its part of the index
    ledger/failures/<shard>-<attempt>.parquet
    ledger/commits/<range>/<shard>.json     its commit record: the shard is done when this is there (see ``commits``)
    ledger/rounds/...                       rows that failed and were taken up again (see ``rounds``)
    ledger/finish/...                       what the end of the job leaves while it is under way (see ``finish``)
    ledger/finished.json                    the totals; the job is finished when this is there. Of round N,
                                            ``finished-<N>.json``
    index.parquet, failures.parquet, duplicates.parquet

A job that makes tokens has no audio, and its index is a table of its own, elsewhere (``Ledger.public_index``).
"""

from __future__ import annotations

import contextlib
import json
import shlex
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from jobs.changes import job_changes, plan_changes, voices_advice
from jobs.errors import InputError, StorageError, Unfinished
from jobs.ledger.commits import Commits
from jobs.ledger.layout import (
    COMMIT_NAME,
    COMMITS,
    DATA,
    FINISH,
    INDEX,
    JOB,
    TABLES,
    chosen_name,
    finished_name,
    plan_name,
)
from jobs.ledger.lease import Lease, Timing, take_lease
from jobs.ledger.rounds import Round, plans_by_shard, read_rounds, write_round
from jobs.ledger.tables import Tables
from jobs.ledger.tally import Summary, summed
from jobs.plan import Plan
from jobs.storage.faults import as_input
from jobs.storage.folders import Folder

FORMAT_VERSION = 5


class Ledger(Commits):
    """The state of one output. ``start`` or ``open`` makes it."""

    def __init__(self, folder: Folder, job: Mapping[str, Any], plan: Plan, rounds: Sequence[Round] = ()) -> None:
        plans = plans_by_shard(job["plan"], rounds)
        super().__init__(folder, plan, plans=plans, conditional=bool(job["conditional"]))
        self.job = dict(job)
        self.rounds = list(rounds)
        self._lease: Lease | None = None

    @property
    def kind(self) -> str:
        """What the job makes: ``synth`` audio of tokens, ``tokenize`` tokens of audio."""
        return str(self.job.get("kind", "synth"))

    @property
    def tables(self) -> Tables:
        """The columns of the tables that the job leaves."""
        return Tables.of(self.job, self.plan.manifest.columns)

    @property
    def resume_command(self) -> str:
        """The line that goes on with the job."""
        options = ["--storage-options", "FILE"] if self.folder.has_options else []
        return shlex.join(["s3gen", "resume", self.folder.url, *options])

    @property
    def public_index(self) -> tuple[Folder, str]:
        """The table that the parts of shards become: a folder, and the table's name in it.

        Of audio it is the index, in the output; of tokens the manifest that was asked for, wherever that is.
        """
        return _place(self.folder, self.job["table"]) if "table" in self.job else (self.folder, INDEX)

    @classmethod
    def start(
        cls, folder: Folder, job: Mapping[str, Any], plan: Plan, files: Mapping[str, bytes] | None = None
    ) -> Ledger:
        """Begins a job in an empty output; when another run begins the same one at this moment, joins it.

        Args:
            job: plain JSON values: ``config`` (``JobConfig.frozen``), ``fingerprints``, ``versions``, ``limit``, and
                ``kind``, ``synth`` if it is absent. One of ``tokenize`` has ``table``, the absolute URL of what it
                makes, and ``schemas`` (see ``tables.Tables``). The plan's digest is added.
            files: by name in the folder, what the plan's manifest has that lies there; written before the job is begun.

        Raises:
            InputError: the output holds something else, or another job; there is something where its table will be; or
                nobody may write there.
            StorageError, StorageUnknown: its store does not answer.
        """
        with as_input("output"):
            begun = exists(folder) or not cls._begin(folder, job, plan, files or {})
        ledger = cls.open(folder)
        if begun:
            ledger.check_unchanged(job, plan)
        return ledger

    @staticmethod
    def _begin(folder: Folder, job: Mapping[str, Any], plan: Plan, files: Mapping[str, bytes]) -> bool:
        refuse_foreign(folder)
        if "table" in job:
            _refuse_taken(*_place(folder, job["table"]))
        described = {**job, "plan": plan.digest, "version": FORMAT_VERSION, "created_at": time.time()}
        described["conditional"] = folder.can_create()
        data = json.dumps(described, indent=1, sort_keys=True).encode()
        for name, content in {**files, plan_name(plan.digest): plan.to_bytes()}.items():
            folder.put(name, content)
        if described["conditional"]:
            return folder.create(JOB, data)
        folder.put(JOB, data)
        return False  # another run may have begun another job at this moment: looked at again

    @classmethod
    def found(cls, folder: Folder) -> Ledger | None:
        """The job of an output, if one was begun there, for who has begun nothing yet. Raises as `start`."""
        with as_input("output"):
            return cls.open(folder) if exists(folder) else None

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
        rounds = read_rounds(folder)
        return cls(folder, job, _read_plan(folder, rounds[-1].plan if rounds else digest), rounds)

    def reopened(self) -> Ledger:
        """The job as it is now, under the same lease."""
        ledger = Ledger.open(self.folder)
        ledger._lease = self._lease
        return ledger

    def check_unchanged(self, job: Mapping[str, Any], plan: Plan | None = None) -> None:
        """Refuses to go on as another job than the one that was begun.

        Args:
            job: as for ``start``; of what it lacks nothing is compared.
            plan: made from the inputs as they are now.

        Raises:
            InputError: lists each key that differs, what it was and what it is now.
        """
        found = job_changes(self.job, job)
        if plan is not None and plan.digest != self.job["plan"]:
            found += plan_changes(_read_plan(self.folder, self.job["plan"]) if self.rounds else self.plan, plan)
        if found:
            lines = "\n".join(f"  {key}: was {was}, is {is_now}" for key, was, is_now in found)
            lines += voices_advice(found, self.job["config"])
            raise InputError(f"{self.folder.url} was begun as another job:\n{lines}\nundo this, or use another output")

    # --- the end ------------------------------------------------------------------------------------------------------

    def summary(self) -> Summary | None:
        """The totals of a finished job; None while it is not."""
        name = finished_name(len(self.rounds))
        try:
            return Summary(**json.loads(self.folder.read(name)))
        except FileNotFoundError:
            return None
        except (ValueError, TypeError) as error:
            raise StorageError(f"{self.folder.path(name)} is damaged: {error}") from None

    def require_round(self) -> None:
        """Returns when no round was begun after this one.

        Raises:
            StorageError: one was; it is meant for a worker of the end that comes late.
        """
        if len(read_rounds(self.folder)) != len(self.rounds):
            raise StorageError(f"{self.folder.url}: another round was begun after round {len(self.rounds)}")

    def not_taken_up(self, errors: Mapping[str, int]) -> dict[str, int]:
        """Failed rows by code, without those that a later round has taken up.

        Args:
            errors: of all committed shards, as ``Tally`` sums them up.
        """
        taken = summed(each.taken for each in self.rounds)
        left = {code: rows - taken.get(code, 0) for code, rows in errors.items()}
        return {code: rows for code, rows in left.items() if rows > 0}

    @property
    def rows_in_round(self) -> int:
        """The rows that the round is about: those of the manifest, or those that it tries again."""
        begin = self.rounds[-1].shard if self.rounds else 0
        return self.plan.rows - int(self.plan.starts[begin])

    def begin_round(self, plan: Plan, taken: Mapping[str, int]) -> Ledger:
        """Takes up rows of a finished job again.

        Args:
            plan: this one, extended by these rows.
            taken: how many of them had failed of which code.

        Returns:
            The job as it then is, under the same lease.

        Raises:
            LeaseHeld: another run has taken over.
        """
        self.folder.put(plan_name(plan.digest), plan.to_bytes())
        self.confirm()
        number, now = len(self.rounds) + 1, time.time()
        each = Round(number=number, plan=plan.digest, shard=len(self.plan), taken=dict(taken), begun_at=now)
        write_round(self.folder, each, self._generation)
        return self.reopened()

    @property
    def _generation(self) -> int:
        return 0 if self._lease is None else self._lease.generation

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
                f"{self.folder.url}: {left} of {len(self.plan)} shards are not done; go on with: {self.resume_command}"
            )

    def fix_choices(self) -> None:
        """Makes the choice among the tries of each shard one for ever; every shard is committed.

        Raises:
            LeaseHeld: another run has taken over.
        """
        if self.conditional:
            return
        for number in range(self.plan.ranges):
            if len(self._chosen(number)) < len(self.plan.range(number)):
                matches = {shard: COMMIT_NAME.match(name) for shard, name in self.record_names(number).items()}
                attempts = {shard: match[2] for shard, match in matches.items() if match}
                if len(attempts) < len(self.plan.range(number)):
                    raise StorageError(f"{self.folder.url}: records of shards that were committed are gone")
                self.confirm()
                name = chosen_name(number, self._generation, len(self.rounds))
                self.folder.put(name, json.dumps(attempts).encode())

    def finish(self, summary: Summary) -> None:
        """Marks the job as finished, in this round."""
        self.folder.put(finished_name(len(self.rounds)), json.dumps(asdict(summary), indent=1).encode())

    def clear_finish(self) -> None:
        """Deletes what the end of the job needed while it was under way, and what killed writers left."""
        self.delete_all(self.folder.list(FINISH))
        self.folder.delete_partial()


def exists(folder: Folder) -> bool:
    """Whether a job was begun in this output."""
    return folder.exists(JOB)


def _read_plan(folder: Folder, digest: str) -> Plan:
    try:
        plan = Plan.from_bytes(folder.read(plan_name(digest)), folder.url)
    except FileNotFoundError:
        raise InputError(f"{folder.url}: the job's plan {plan_name(digest)} is missing") from None
    if plan.digest != digest:
        raise InputError(f"{folder.url}: the job names the plan {digest}, its file holds {plan.digest}")
    return plan


def refuse_foreign(folder: Folder) -> None:
    """Returns where a job may begin.

    An output is cleared of files that no record names: it must not be somebody's folder of recordings.

    Raises:
        InputError: something is there already.
    """
    for prefix in (*DATA, COMMITS, *TABLES):
        found = folder.list(prefix)
        if found:
            raise InputError(
                f"{folder.url}: there is no {JOB}, but {found[0]}: this is another folder, or what is left of a job; "
                "choose an empty output"
            )


def _refuse_taken(folder: Folder, name: str) -> None:
    """What lies where a table will be is not replaced."""
    if folder.exists(name) or folder.list(f"{name}/"):
        raise InputError(f"{folder.path(name)} is there already; choose another place, or delete it")


def _place(folder: Folder, url: str) -> tuple[Folder, str]:
    """The folder that an object is in, reached with the options of another folder, and its name there."""
    parent, _, name = url.rstrip("/").rpartition("/")
    return folder.elsewhere(parent or "/"), name
