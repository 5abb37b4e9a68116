"""A job of a thousand workers without any: discrete events on a virtual clock, around the real queue and ledger.

What is real: the plan, `jobs.crew.schedule.Schedule`, and `jobs.ledger.ledger.Ledger` over a store in memory. What is
made up: the store's latency, and workers, which take a random time for a shard, commit it, and die now and then. The
same seed gives the same job. Seconds are virtual, unless they are called CPU seconds.
"""

from __future__ import annotations

import heapq
import io
import math
import random
import threading
import time
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from benchmarks.made_up import ROW_SAMPLES, made_up_record
from jobs.crew.isolation import Death
from jobs.crew.schedule import Schedule
from jobs.ledger.ledger import Ledger
from jobs.ledger.records import CommitRecord, StoredFile
from jobs.plan import ShardSet
from jobs.progress import Meter
from s3gen.constants import SAMPLE_RATE

PAGE_NAMES = 1_000  # that a store lists in one answer
DIGEST = "0" * 64


@dataclass(frozen=True, kw_only=True, slots=True)
class Latency:
    """Seconds that a store takes to answer."""

    read: float = 0.02
    write: float = 0.04
    delete: float = 0.02
    page: float = 0.08  # of a listing


class MemoryStore:
    """Objects in memory, compressed; a raw store for `jobs.storage.folders.Folder.of`.

    Attributes:
        waited: seconds that all requests so far would have taken, one after the other.
        requests: how many of each kind.
    """

    creates = True

    def __init__(self, latency: Latency | None = None) -> None:
        self.waited, self.requests = 0.0, Counter[str]()
        self._latency = latency or Latency()
        self._folders: dict[str, dict[str, bytes]] = {}
        self._lock = threading.Lock()

    def read(self, name: str, start: int = 0, stop: int | None = None) -> bytes:
        """The object, or a part of it."""
        self._wait("read", self._latency.read)
        folder, base = _split(name)
        found = self._folders.get(folder, {}).get(base)
        if found is None:
            raise FileNotFoundError(name)
        return zlib.decompress(found)[start:stop]

    def put(self, name: str, data: bytes) -> None:
        """Writes it, or replaces it."""
        self._wait("write", self._latency.write)
        folder, base = _split(name)
        self._folders.setdefault(folder, {})[base] = zlib.compress(data, 1)

    def create(self, name: str, data: bytes) -> None:
        """Writes it if there is none."""
        folder, base = _split(name)
        with self._lock:
            if base in self._folders.get(folder, {}):
                taken = True
            else:
                self._folders.setdefault(folder, {})[base] = zlib.compress(data, 1)
                taken = False
        self._wait("write", self._latency.write)
        if taken:
            raise FileExistsError(name)

    def upload(self, name: str, local_path: str) -> None:
        """Writes a local file's content."""
        self.put(name, Path(local_path).read_bytes())

    def open(self, name: str) -> IO[bytes]:
        """For reading."""
        return io.BytesIO(self.read(name))

    def size(self, name: str) -> int:
        """Bytes of it."""
        return len(self.read(name))

    def delete(self, name: str) -> None:
        """Deletes it."""
        self._wait("delete", self._latency.delete)
        folder, base = _split(name)
        if self._folders.get(folder, {}).pop(base, None) is None:
            raise FileNotFoundError(name)

    def list(self, prefix: str) -> Iterator[str]:
        """Names that begin with it."""
        folder, start = _split(prefix)
        found = [
            f"{place}/{base}" if place else base
            for place in ([folder, *self._below(folder)] if folder in self._folders else self._below(folder))
            for base in self._folders[place]
            if place != folder or base.startswith(start)
        ]
        found = [name for name in found if name.startswith(prefix)]
        self._wait("list", self._latency.page * max(1, math.ceil(len(found) / PAGE_NAMES)))
        return iter(found)

    def partial(self, prefix: str) -> Iterator[str]:
        """Nothing is ever half written."""
        return iter(())

    def _below(self, folder: str) -> list[str]:
        return [place for place in self._folders if place and place != folder and place.startswith(_inside(folder))]

    def _wait(self, kind: str, seconds: float) -> None:
        with self._lock:
            self.waited += seconds
            self.requests[kind] += 1


def _split(name: str) -> tuple[str, str]:
    folder, _, base = name.rpartition("/")
    return folder, base


def _inside(folder: str) -> str:
    return f"{folder}/" if folder else ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Cluster:
    """What the made-up workers are like.

    Attributes:
        shard_seconds: that a shard takes, the median of a log-normal distribution.
        spread: standard deviation of its logarithm.
        deaths_per_hour: of each worker.
        machine_losses: share of deaths that are the machine's.
        notice_seconds: until the driver hears of a death.
        replace_seconds: until another worker is placed, the mean of an exponential distribution.
        load_seconds: until it has its model.
        publish_seconds: to write and upload a shard's files.
        in_hand: tasks that a worker takes at once; one is computed at a time.
    """

    workers: int = 1_000
    shard_seconds: float = 60.0
    spread: float = 0.35
    deaths_per_hour: float = 0.01
    machine_losses: float = 0.5
    notice_seconds: float = 10.0
    replace_seconds: float = 120.0
    load_seconds: float = 60.0
    publish_seconds: float = 3.0
    in_hand: int = 3


@dataclass(slots=True)
class _Worker:
    calls: list[int] = field(default_factory=list)  # tasks in hand, in the order in which they came
    computing: int | None = None
    waiting: list[int] = field(default_factory=list)  # of those in hand, not yet begun


@dataclass(slots=True)
class Costs:
    """CPU seconds of the real code, and what happened.

    Attributes:
        driver: in the schedule and the meter.
        commits: in `Ledger.commit`, which workers call.
    """

    driver: float = 0.0
    commits: float = 0.0
    commit_calls: int = 0
    deaths: int = 0
    begun: int = 0  # shards whose work was begun, each as often as it was


class Simulation:
    """One run of a driver over the shards that are not done.

    Attributes:
        clock: virtual seconds.
        intervals: (shards, 2) when the work that counted on each shard began and ended; NaN before.
    """

    def __init__(
        self, ledger: Ledger, cluster: Cluster, done: ShardSet, intervals: npt.NDArray[np.float64], seed: int
    ) -> None:
        self.costs, self.clock, self.intervals = Costs(), 0.0, intervals
        self._ledger, self._cluster, self._random = ledger, cluster, random.Random(seed)
        plan = ledger.plan
        left = (index for index in range(len(plan)) if index not in done)
        self.schedule = Schedule(left, rows=lambda shard: plan.shard(shard).rows)
        self._meter = Meter(plan.rows, rows_before=plan.rows_of(done))
        self._events: list[tuple[float, int, Any]] = []
        self._order = 0
        self._workers: dict[int, _Worker] = {}
        self._hired = 0
        self._done = 0

    def run(self, start: float, stop_after: float = math.inf) -> None:
        """Works until everything is done, or so many shards have been reported: then the driver is killed."""
        self.clock = start
        for _ in range(self._cluster.workers):
            self._at(self._random.expovariate(1 / 10) + self._cluster.load_seconds, self._hire)
        while self._events and self._done < stop_after:
            self.clock, _, happens = heapq.heappop(self._events)
            happens()
            if self.schedule.finished:
                return

    # --- events -------------------------------------------------------------------------------------------------------

    def _at(self, seconds: float, happens: Any) -> None:
        """Later, by so many seconds."""
        self._order += 1
        heapq.heappush(self._events, (self.clock + seconds, self._order, happens))

    def _hire(self) -> None:
        self._hired += 1
        number = self._hired
        self._workers[number] = _Worker()
        if self._cluster.deaths_per_hour:
            self._at(self._random.expovariate(self._cluster.deaths_per_hour / 3600), lambda: self._die(number))
        self._hand_out([number])

    def _begin(self, number: int, worker: _Worker) -> None:
        if worker.computing is not None or not worker.waiting:
            return
        task = worker.computing = worker.waiting.pop(0)
        probe = self.schedule.case(task).probe
        self.costs.begun += probe is None
        share = 1.0 if probe is None else (probe[1] - probe[0]) / self._ledger.plan.shard(task).rows
        seconds = self._cluster.shard_seconds * math.exp(self._random.gauss(0, self._cluster.spread)) * share
        began = self.clock
        self._at(seconds, lambda: self._computed(number, task, began, probed=probe is not None))

    def _computed(self, number: int, task: int, began: float, *, probed: bool) -> None:
        worker = self._workers.get(number)
        if worker is None:
            return
        ended, worker.computing = self.clock, None
        self._begin(number, worker)
        if probed:
            self._at(0.1, lambda: self._report(number, task))
        else:
            self._at(self._cluster.publish_seconds, lambda: self._commit(number, task, began, ended))

    def _commit(self, number: int, task: int, began: float, ended: float) -> None:
        if number not in self._workers:
            return
        store: MemoryStore = self._ledger.folder._store  # type: ignore[assignment]
        before, cpu = store.waited, time.thread_time()
        attempt = self._ledger.attempt(task)
        counted = self._ledger.commit(attempt, self._record(task, attempt.id, began, ended))
        self.costs.commits += time.thread_time() - cpu
        self.costs.commit_calls += 1
        if counted:
            self.intervals[task] = began, ended
        # A worker that dies meanwhile has committed all the same; only nobody hears of it.
        self._at(store.waited - before, lambda: self._report(number, task))

    def _record(self, shard: int, attempt: str, began: float, ended: float) -> CommitRecord:
        rows = self._ledger.plan.shard(shard).rows
        files = [
            StoredFile(name=f"{folder}/{shard:07d}-{attempt}.parquet", bytes=rows * 100_000, sha256=DIGEST)
            for folder in ("audio", "ledger/index")
        ]
        return made_up_record(
            self._ledger.plan, shard, attempt, ids=DIGEST, seconds=(began, ended), audio=files[0], index=files[1]
        )

    def _report(self, number: int, task: int) -> None:
        worker = self._workers.get(number)
        if worker is None:
            return
        worker.calls.remove(task)
        cpu = time.thread_time()
        if self.schedule.done(task):
            rows = self._ledger.plan.shard(task).rows
            self._meter.add(done=rows, failed=0, audio_seconds=rows * ROW_SAMPLES / SAMPLE_RATE)
            self._done += 1
        self.costs.driver += time.thread_time() - cpu
        self._hand_out([number])

    def _die(self, number: int) -> None:
        worker = self._workers.pop(number, None)
        if worker is not None:
            self.costs.deaths += 1
            self._at(self._cluster.notice_seconds, lambda: self._notice(worker))
            absent = self._random.expovariate(1 / self._cluster.replace_seconds) + self._cluster.load_seconds
            self._at(self._cluster.notice_seconds + absent, self._hire)

    def _notice(self, worker: _Worker) -> None:
        cpu = time.thread_time()
        if self._random.random() < self._cluster.machine_losses:
            for task in worker.calls:
                self.schedule.moved(task, "its machine was lost")
        elif len(worker.calls) == 1:
            self.schedule.died(worker.calls[0], Death(reason="its worker died"))
        else:
            for task in worker.calls:
                self.schedule.lost(task)
        self.costs.driver += time.thread_time() - cpu
        self._hand_out(list(self._workers))

    def _hand_out(self, numbers: list[int]) -> None:
        """As the real crew does: a task for each, then a second one, while each other worker could get one too."""
        cpu = time.thread_time()
        for held in range(self._cluster.in_hand):
            for number in numbers:
                worker = self._workers.get(number)
                if worker is None or len(worker.calls) != held:
                    continue
                task = self.schedule.next(worker.calls, spare=self._cluster.workers - 1 if held else 0)
                if task is not None:
                    worker.calls.append(task)
                    worker.waiting.append(task)
        self.costs.driver += time.thread_time() - cpu
        for number in numbers:
            if number in self._workers:
                self._begin(number, self._workers[number])


def useful_share(intervals: npt.NDArray[np.float64], workers: int, start: float, stop: float) -> float:
    """The share of all workers' seconds, from ``start`` to ``stop``, that went into work on a shard that counted."""
    begun, ended = np.clip(intervals[:, 0], start, stop), np.clip(intervals[:, 1], start, stop)
    return float(np.nansum(ended - begun) / (workers * (stop - start)))
