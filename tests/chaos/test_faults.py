"""What a seed means: the same accidents every time, all of them, none where it cannot happen."""

from __future__ import annotations

from collections import Counter

import pytest

from tests.chaos.faults import ENDS, KILLS, MOST_DEATHS, Kind, counts_of, plan

SEEDS = range(20)


@pytest.mark.parametrize("store", [False, True])
@pytest.mark.parametrize("kills", [1, 7, 50, 200])
def test_as_many_kills_are_dealt_as_were_asked_for(kills: int, store: bool) -> None:
    counts = counts_of(kills, store=store)
    assert sum(count for kind, count in counts.items() if kind in KILLS) == kills
    for seed in SEEDS:
        assert Counter(fault.kind for run in plan(counts, seed) for fault in run.faults) == Counter(counts)


def test_a_store_is_only_killed_where_there_is_one() -> None:
    assert Kind.STORE not in counts_of(50, store=False)
    assert counts_of(50, store=True)[Kind.STORE] > 0


def test_the_same_seed_plans_the_same_and_another_one_does_not() -> None:
    counts = counts_of(50, store=False)
    assert plan(counts, 3) == plan(counts, 3)
    assert plan(counts, 3) != plan(counts, 4)


@pytest.mark.parametrize("seed", SEEDS)
def test_every_fault_finds_the_run_that_it_needs(seed: int) -> None:
    runs = plan(counts_of(50, store=True), seed)
    for run in runs:
        kinds = [fault.kind for fault in run.faults]
        assert not ENDS & set(kinds[:-1])
        assert run.cluster or Kind.NODE not in kinds
        assert not run.cluster or Kind.RAYLET not in kinds
        assert sum(kind in (Kind.WORKER, Kind.NODE, Kind.RAYLET) for kind in kinds) <= MOST_DEATHS
    first = next(at for at, run in enumerate(runs) if run.faults[-1].kind is Kind.DRIVER_FINISHING)
    assert {fault.kind for run in runs[first + 1 :] for fault in run.faults} == {Kind.DRIVER_FINISHING}


def test_faults_that_no_run_would_end_with_get_a_run_of_their_own() -> None:
    [run] = plan({Kind.WORKER: 2}, 0)
    assert [fault.kind for fault in run.faults] == [Kind.WORKER, Kind.WORKER]
    [run] = plan({Kind.NODE: 1}, 0)
    assert run.cluster
