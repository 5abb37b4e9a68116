"""Which accidents happen to a job, in which order and when: drawn from a seed, before anything runs.

A job is made by several runs, one after the other. A run meets some faults that it should survive, then one that ends
it, if it does not get to the end. Only instants by the clock are left to chance: the choices follow from the seed.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

MOST_DEATHS = 3  # of workers in one run: more at the same shard would rightly make the job suspect a row
START_SECONDS = 9.0  # of a run, in which it imports, starts Ray and takes the lease
WORK_SECONDS = 1.0
FINISH_SECONDS = 0.15
WAIT_SECONDS = 2.5
CLUSTER_EVERY = 3  # of the runs that are at work when they end, one in so many is on a cluster


class Kind(StrEnum):
    """What happens; the value is what the report calls it."""

    DRIVER_STARTING = "driver killed while it starts"
    DRIVER_AT_WORK = "driver killed at work"
    DRIVER_FINISHING = "driver killed at the end of the job"
    DRIVER_WAITING = "driver killed while it waits for the lease"
    WORKER = "worker killed"
    RAYLET = "raylet of the driver's own Ray killed"
    NODE = "node of a cluster killed, another added"
    STORE = "object store killed, back after seconds"
    SIGTERM = "SIGTERM"
    SIGINT = "SIGINT"
    FROZEN = "driver frozen until another took over"
    SECOND = "second driver on a live job"


KILLS = frozenset(Kind) - {Kind.SIGTERM, Kind.SIGINT, Kind.FROZEN, Kind.SECOND}
ENDS = frozenset(
    {Kind.DRIVER_STARTING, Kind.DRIVER_AT_WORK, Kind.DRIVER_FINISHING, Kind.RAYLET, Kind.SIGTERM, Kind.SIGINT}
)
LONG = frozenset({Kind.DRIVER_WAITING, Kind.FROZEN, Kind.SECOND})  # with a second driver, which has to start
# Of 50 kills, and what comes beside them.
SHARES = {
    Kind.DRIVER_STARTING: 8,
    Kind.DRIVER_AT_WORK: 11,
    Kind.DRIVER_FINISHING: 2,
    Kind.DRIVER_WAITING: 2,
    Kind.WORKER: 18,
    Kind.RAYLET: 4,
    Kind.NODE: 5,
}
BESIDE = {Kind.SIGTERM: 2, Kind.SIGINT: 2, Kind.SECOND: 1, Kind.FROZEN: 1}
STORE_SHARE = 6  # of 50, where there is a store to kill; so many kills of workers are left out


@dataclass(frozen=True, slots=True)
class Fault:
    """One accident.

    Attributes:
        after: shards that the run has to commit after the fault before it.
        delay: seconds from then on; of a start, from its beginning.
    """

    kind: Kind
    after: int
    delay: float


@dataclass(frozen=True, slots=True)
class Run:
    """One driver: what happens to it, and whether its workers are on a cluster or on its own Ray."""

    faults: tuple[Fault, ...]
    cluster: bool = False


def counts_of(kills: int, *, store: bool) -> dict[Kind, int]:
    """How often each kind happens: ``kills`` SIGKILLs in all, and the other kinds in proportion, each at least once."""
    shares = dict(SHARES)
    if store:
        shares[Kind.STORE] = STORE_SHARE
        shares[Kind.WORKER] -= STORE_SHARE
    whole = sum(shares.values())
    counts = {kind: kills * share // whole for kind, share in shares.items()}
    for kind in sorted(shares, key=lambda kind: counts[kind] - kills * shares[kind] / whole)[
        : kills - sum(counts.values())
    ]:
        counts[kind] += 1
    return counts | {kind: max(1, share * kills // whole) for kind, share in BESIDE.items()}


def plan(counts: Mapping[Kind, int], seed: int) -> list[Run]:
    """The runs of a job, in order; those that are to die at its end come last."""
    rng = random.Random(seed)
    ends = [kind for kind, count in counts.items() if kind in ENDS for _ in range(count)]
    passing = [kind for kind, count in counts.items() if kind not in ENDS for _ in range(count)]
    rng.shuffle(ends)
    rng.shuffle(passing)
    ends.sort(key=lambda kind: kind is Kind.DRIVER_FINISHING)
    on_cluster = _on_cluster(ends) if Kind.NODE in passing else set()
    lists: list[list[Kind]] = [[kind] for kind in ends]
    # From the first run that dies at the end of the job on there are no shards left for other faults.
    full = ends.index(Kind.DRIVER_FINISHING) + 1 if Kind.DRIVER_FINISHING in ends else None
    for kind in passing:
        bears = [at for at, kinds in enumerate(lists[:full]) if _bears(kinds, kind, at in on_cluster)]
        if not bears:  # a run that gets to the end of the job
            bears = [len(lists)]
            lists.append([])
            on_cluster |= {len(lists) - 1} if kind is Kind.NODE else set()
        lists[rng.choice(bears)].insert(0, kind)
    return [Run(tuple(_fault(kind, rng) for kind in kinds), cluster=at in on_cluster) for at, kinds in enumerate(lists)]


def _on_cluster(ends: list[Kind]) -> set[int]:
    """Some of the runs that a cluster's run can be; a driver's own raylet is not there."""
    fit = [at for at, kind in enumerate(ends) if kind is Kind.DRIVER_AT_WORK]
    return set(fit[::CLUSTER_EVERY])


def _bears(kinds: list[Kind], more: Kind, cluster: bool) -> bool:
    """Whether a run with these faults can have one more before them."""
    if Kind.DRIVER_STARTING in kinds or (more is Kind.NODE and not cluster):
        return False
    if more in LONG:
        return not cluster and not LONG & set(kinds)
    return sum(kind in (Kind.WORKER, Kind.NODE, Kind.RAYLET) for kind in kinds) < MOST_DEATHS


def _fault(kind: Kind, rng: random.Random) -> Fault:
    most = {
        Kind.DRIVER_STARTING: START_SECONDS,
        Kind.DRIVER_FINISHING: FINISH_SECONDS,
        Kind.DRIVER_WAITING: WAIT_SECONDS,
    }.get(kind, WORK_SECONDS)
    at_once = kind in (Kind.DRIVER_STARTING, Kind.DRIVER_FINISHING)
    return Fault(kind, 0 if at_once else rng.choice((0, 0, 1, 1, 2)), rng.uniform(0, most))
