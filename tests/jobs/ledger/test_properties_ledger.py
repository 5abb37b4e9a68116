"""The ledger, whoever dies when: tries race, fail, land unseen and come late, and every shard counts once."""

from __future__ import annotations

import hashlib
import io
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from jobs.errors import StorageError, StorageUnknown, Unfinished
from jobs.finish import finalise
from jobs.ledger.layout import DATA
from jobs.ledger.ledger import Ledger
from jobs.ledger.records import Attempt, CommitRecord
from jobs.retry import begin_retry
from jobs.storage.folders import Folder
from tests.jobs import made_job

OUTPUT = "made-up://output"
ROWS = 14
SHARDS = 4
MOST_ENDS, MOST_ROUNDS, MOST_READY = 3, 2, 4
CODES = ("bad_audio", "worker_crashed", "unknown_voice")

ids = st.sampled_from([f"u{n}" for n in range(ROWS)])
failing = st.dictionaries(ids, st.sampled_from(CODES), min_size=2, max_size=6)

bounded = settings(
    max_examples=30,
    stateful_step_count=15,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)


class Killed(BaseException):
    """The process is gone: nothing catches this."""


class FaultyStore:
    """Objects in memory; a write may be the process's last, before or after it lands, or end in an error.

    Attributes:
        fault: raised at the write after ``left`` more ones; None for none.
        lands: whether that write is done all the same.
    """

    def __init__(self, creates: bool) -> None:
        self.creates = creates
        self.objects: dict[str, bytes] = {}
        self.fault: BaseException | None = None
        self.left = 0
        self.lands = False
        self._lock = threading.RLock()

    def _write(self, change: Callable[[], object]) -> None:
        with self._lock:
            fault = self.fault if self.left == 0 else None
            self.left -= 1
            if fault is not None and isinstance(fault, Killed):
                self.left = 0  # a dead process writes nothing more
            if fault is None or self.lands:
                change()
                self.lands = False
            if fault is not None:
                raise fault

    def read(self, name: str, start: int = 0, stop: int | None = None) -> bytes:
        try:
            return self.objects[name][start:stop]
        except KeyError:
            raise FileNotFoundError(name) from None

    def put(self, name: str, data: bytes) -> None:
        self._write(lambda: self.objects.update({name: data}))

    def create(self, name: str, data: bytes) -> None:
        if not self.creates:
            raise NotImplementedError
        with self._lock:
            if name in self.objects:
                raise FileExistsError(name)
            self.put(name, data)

    def upload(self, name: str, local_path: str) -> None:
        self.put(name, Path(local_path).read_bytes())

    def open(self, name: str) -> IO[bytes]:
        return io.BytesIO(self.read(name))

    def size(self, name: str) -> int:
        return len(self.read(name))

    def delete(self, name: str) -> None:
        self.read(name)
        self._write(lambda: self.objects.pop(name))

    def list(self, prefix: str) -> Iterator[str]:
        return iter([name for name in list(self.objects) if name.startswith(prefix)])

    def partial(self, prefix: str) -> Iterator[str]:
        return iter(())


class LedgerMachine(RuleBasedStateMachine):
    """One output, many processes. ``creates`` says what the store can; a test sets it."""

    creates = True
    manifest = ""
    every_id: Sequence[str] = ()

    def __init__(self) -> None:
        super().__init__()
        self.store = FaultyStore(self.creates)
        self.ledger: Ledger
        self.ready: list[tuple[Attempt, CommitRecord]] = []  # tries whose files are written and whose commit is not
        self.known: set[int] = set()  # shards that somebody was told are committed
        self.final: dict[int, str] = {}  # the attempts that count for ever, since the job was finished
        self.ends = 0  # of which each takes long; more than a few show nothing new
        patch = pytest.MonkeyPatch()
        patch.setattr("jobs.manifest.manifest.open_input", self._open_input)
        self.teardown = patch.undo  # type: ignore[method-assign]

    @initialize(made=st.sets(st.integers(0, SHARDS - 1)), bad=failing, stored=st.sampled_from(["parquet", "lhotse"]))
    def begin(self, made: set[int], bad: dict[str, str], stored: str) -> None:
        """Of a shard for lhotse there are two files, of others one."""
        self.job = made_job.job_of("/made/up", self.manifest, format=stored)
        self.ledger = Ledger.start(self._folder(), self.job, made_job.plan_of(self.manifest))
        assert self.ledger.job["conditional"] == self.creates
        for shard in sorted(made):
            self._make(shard, bad)

    def _open_input(self, url: str, options: object) -> IO[bytes]:
        """The manifest, or what the ledger has of it."""
        name = url.removeprefix(f"{OUTPUT}/")
        return open(url, "rb") if name == url else self.store.open(name)

    def _folder(self) -> Folder:
        return Folder.of(self.store, OUTPUT)

    def _make(self, shard: int, bad: Mapping[str, str]) -> None:
        self.ledger.commit(*made_job.prepare(self.ledger, shard, trouble=lambda row: bad.get(row.id)))

    def _survive(self, work: Callable[[], object], fault: BaseException, left: int, lands: bool) -> bool:
        """Whether the work came to its end before the fault; after the fault the process is another one."""
        self.store.fault, self.store.left, self.store.lands = fault, left, lands
        try:
            work()
        except Killed:
            return False
        finally:
            self.store.fault, self.store.lands = None, False
            self.ledger = Ledger.open(self._folder())
        return True

    # --- what happens ---

    @precondition(lambda self: len(self.ready) < MOST_READY)
    @rule(numbers=st.lists(st.integers(0, 2 * SHARDS), min_size=1, max_size=3), bad=failing)
    def write_files(self, numbers: list[int], bad: dict[str, str]) -> None:
        self.ready += [
            made_job.prepare(self.ledger, number % len(self.ledger.plan), trouble=lambda row: bad.get(row.id))
            for number in numbers
        ]

    @rule(shard=st.integers(0, SHARDS - 1), left=st.integers(0, 3), lands=st.booleans())
    def die_writing_files(self, shard: int, left: int, lands: bool) -> None:
        self._survive(lambda: made_job.prepare(self.ledger, shard), Killed(), left, lands)

    @rule(bad=failing)
    def make_what_is_left(self, bad: dict[str, str]) -> None:
        """Otherwise ends, and what comes after them, are rare."""
        for shard in set(range(len(self.ledger.plan))) - set(self.ledger.committed()):
            self._make(shard, bad)

    @precondition(lambda self: self.ready)
    @rule(data=st.data())
    def commit(self, data: st.DataObject) -> None:
        attempt, record = self.ready.pop(data.draw(st.integers(0, len(self.ready) - 1)))
        counts = self.ledger.commit(attempt, record)
        assert attempt.shard in self.ledger.committed()
        self.known.add(attempt.shard)
        assert counts == (self._counting()[attempt.shard] == attempt.id)
        assert not (counts and attempt.shard in self.final)

    @precondition(lambda self: self.ready)
    @rule(data=st.data(), left=st.integers(0, 2), lands=st.booleans())
    def die_committing(self, data: st.DataObject, left: int, lands: bool) -> None:
        attempt, record = self.ready.pop(data.draw(st.integers(0, len(self.ready) - 1)))
        self._survive(lambda: self.ledger.commit(attempt, record), Killed(), left, lands)

    @precondition(lambda self: self.ready)
    @rule(data=st.data(), lands=st.booleans())
    def fail_committing(self, data: st.DataObject, lands: bool) -> None:
        """The answer is lost, wherever the request went; then the same try is repeated, or left alone."""
        attempt, record = self.ready.pop(data.draw(st.integers(0, len(self.ready) - 1)))
        self.store.fault, self.store.left, self.store.lands = TimeoutError("no answer"), 0, lands
        try:
            self.ledger.commit(attempt, record)
        except StorageUnknown:
            if data.draw(st.booleans()):
                self.ready.append((attempt, record))
        except StorageError:
            pass
        finally:
            self.store.fault, self.store.lands = None, False

    @rule()
    def resume(self) -> None:
        self.ledger = Ledger.open(self._folder())
        self.ledger.check_unchanged(self.job, made_job.plan_of(self.manifest))

    @precondition(lambda self: self.ends < MOST_ENDS)
    @rule(left=st.integers(0, 12), lands=st.booleans())
    def die_finishing(self, left: int, lands: bool) -> None:
        self.finish(lambda: self._survive(lambda: finalise(self.ledger), Killed(), left, lands))

    @precondition(lambda self: self.ends < MOST_ENDS)
    @rule()
    def come_to_the_end(self) -> None:
        finished = self.ledger.summary() is not None
        self.finish(lambda: finalise(self.ledger) is not None)
        # A try that dies after the end leaves its files behind.
        if not finished and self.ledger.summary() is not None:
            self.check_whole()

    @precondition(lambda self: len(self.ledger.rounds) < MOST_ROUNDS)
    @rule(left=st.integers(0, 5), lands=st.booleans(), bad=failing, worse=failing)
    def retry(self, left: int, lands: bool, bad: dict[str, str], worse: dict[str, str]) -> None:
        """The job comes to its end, and rows that failed are taken up again, or whoever does it dies."""
        self.make_what_is_left(worse)
        self.come_to_the_end()
        before, summary = len(self.ledger.rounds), self.ledger.summary()
        assert summary is not None
        self._survive(lambda: begin_retry(self.ledger), Killed(), left, lands)
        if len(self.ledger.rounds) == before:
            assert self.ledger.summary() == summary
            return
        assert sum(self.ledger.rounds[-1].taken.values()) == self.ledger.rows_in_round <= summary.rows_failed
        self.ends = 0
        for shard in range(self.ledger.rounds[-1].shard, len(self.ledger.plan)):
            self.ready.append(made_job.prepare(self.ledger, shard, trouble=lambda row: bad.get(row.id)))

    def finish(self, work: Callable[[], bool]) -> None:
        self.ends += 1
        whole = len(self.ledger.committed()) == len(self.ledger.plan)
        try:
            ended = work()
        except Unfinished:
            assert not whole
            return
        assert whole or not ended
        if ended:
            self.final = self._counting()

    def check_whole(self) -> None:
        """After an end that nothing disturbed."""
        records = list(self.ledger.records())
        named = {file.name for record in records for file in record.files()}
        # Tries that are still at it write on; what they have written is theirs to clear away, or the next end's.
        late = {file.name for _, record in self.ready for file in record.files()}
        present = {name for prefix in DATA for name in self.store.list(prefix)}
        assert named <= present
        assert present - named <= late
        index = self._table("index.parquet")
        failures = self._table("failures.parquet")
        rows = {(record.audio.name, at) for record in records if record.audio for at in range(record.rows_done)}
        places = list(zip(index["shard"].to_pylist(), index["row"].to_pylist(), strict=True))
        assert sorted(places) == sorted(rows)
        ids = [*index["id"].to_pylist(), *failures["id"].to_pylist()]
        assert sorted(ids) == sorted(self.every_id)
        origins = failures.select(["id", "manifest", "row"]).to_pylist()
        assert all(self.every_id[row["row"]] == row["id"] and row["manifest"] == self.manifest for row in origins)

    def _table(self, name: str) -> pa.Table:
        return pq.read_table(io.BytesIO(self.store.objects[name]))

    def _counting(self) -> dict[int, str]:
        return {record.shard: record.attempt for record in self.ledger.records()}

    # --- what always holds ---

    @invariant()
    def no_commit_is_lost_and_no_file_that_counts(self) -> None:
        if not hasattr(self, "ledger"):
            return
        records = list(self.ledger.records())
        shards = [record.shard for record in records]
        assert shards == sorted(set(shards)) == list(self.ledger.committed())
        assert self.known <= set(shards)
        self.known |= set(shards)
        counting = self._counting()
        assert {shard: counting[shard] for shard in self.final} == self.final
        for record in records:
            for file in record.files():
                data = self.store.objects[file.name]
                assert (len(data), hashlib.sha256(data).hexdigest()) == (file.bytes, file.sha256)


@pytest.mark.parametrize("creates", [True, False], ids=["put-if-absent", "plain puts"])
def test_a_shard_is_lost_or_counts_twice(creates: bool) -> None:
    with tempfile.TemporaryDirectory() as folder:
        LedgerMachine.creates = creates
        LedgerMachine.manifest = made_job.write_manifest(Path(folder) / "m.parquet", ROWS)
        LedgerMachine.every_id = pq.read_table(LedgerMachine.manifest)["id"].to_pylist()
        run_state_machine_as_test(LedgerMachine, settings=bounded)
