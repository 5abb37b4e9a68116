"""What a crew does about workers that hang, rows that kill, machines that come and go; on a cluster that is fake."""

from __future__ import annotations

import time
from typing import Any

import pytest
import ray.exceptions

from jobs.crew import crew as crews
from jobs.crew.isolation import Death
from jobs.crew.schedule import MAX_HALVINGS
from jobs.errors import JobError, StorageError
from jobs.worker.worker import Order
from tests.jobs.crew.fake_run import STALL, Run, steady
from tests.jobs.fake_ray import NEVER, Actor, Ends, Reference, World, killer

# --- hung workers -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("deaf", [False, True])
def test_a_worker_that_hangs_holds_its_shard_for_ever(
    monkeypatch: pytest.MonkeyPatch, deaf: bool, caplog: pytest.LogCaptureFixture
) -> None:
    def script(actor: Actor, order: Order) -> tuple[float, Any]:
        if order.shard == 1 and actor.world.seconds < 100:
            actor.hangs, actor.deaf = not deaf, deaf
            return 0, NEVER
        return 20.0, order

    world = World(monkeypatch, {"a": 2}, script)
    run = Run(world, 6).work()
    assert sorted(run.reports) == list(range(6))
    assert "1 failed, try 1: its worker (process" in caplog.text
    assert "did nothing for 300 s; it is tried again" in caplog.text
    assert len(world.actors) == 3
    # Found soon after the limit, by then all else is done.
    assert STALL < world.seconds < STALL + 60


def test_a_worker_that_is_slow_but_gets_on_is_taken_for_hung(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch, {"a": 2}, steady(20 * STALL))
    run = Run(world, 3).work()
    assert sorted(run.reports) == [0, 1, 2]
    assert len(world.actors) == 2


def test_a_worker_without_work_is_taken_for_hung(monkeypatch: pytest.MonkeyPatch) -> None:
    def script(actor: Actor, order: Order) -> tuple[float, Any]:
        actor.hangs = True  # its pulse stands still from here on, and it has nothing to do
        return (10.0 if order.shard else STALL - 5), order

    world = World(monkeypatch, {"a": 2}, script)
    assert sorted(Run(world, 2).work().reports) == [0, 1]
    assert len(world.actors) == 2


def test_a_run_that_was_told_to_stop_seems_to_hang(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    world = World(monkeypatch, {"a": 2}, lambda actor, order: (1e6 if order.shard else 30.0, order))
    run = Run(world, 6)
    with caplog.at_level("INFO", "jobs"):
        run.work(seconds=30)
    assert sorted(run.reports) == [0]
    assert "stopping: waiting up to 12 s for 2 in hand: 0, 1" in caplog.text
    # The view of it goes on: shard 1 is in hand when shard 0 is done, and for some seconds more.
    held = [[each.task for sight in look for each in sight.held] for look in run.looks]
    assert held[-1] == [1]
    assert run.looks[-1][0].seconds > 30


def test_a_run_that_is_done_waits_for_nothing(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO", "jobs"):
        Run(World(monkeypatch, {"a": 2}, steady()), 6).work()
    assert caplog.text == ""


# --- rows that kill ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("guilty", "hung"),
    [({5: False}, False), ({0: False, 63: False}, False), ({17: True}, True), ({3: False, 40: True}, True)],
)
def test_rows_that_kill_their_workers_take_their_shard_with_them(
    monkeypatch: pytest.MonkeyPatch, guilty: dict[int, bool], hung: bool
) -> None:
    deaths = {row: Death(reason="", hung=hangs) for row, hangs in guilty.items()}
    world = World(monkeypatch, {"a": 3}, killer(64, deaths))
    run = Run(world, 5, rows=64, workers=3).work()
    assert sorted(run.reports) == list(range(5))
    assert run.schedule.given_up == {}
    for order in run.reports.values():
        assert {row: death.hung for row, death in order.guilty.items()} == guilty
        assert order.probe is None
    # Two deaths of the whole shard, and for each row a search, its confirmation and the whole shard again.
    assert len(world.actors) - 3 <= 5 * (2 + len(guilty) * (6 + 2 + 1))


def test_a_shard_of_nothing_but_killers_uses_up_workers_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    def script(actor: Actor, order: Order) -> tuple[float, Any]:
        first, end = order.probe or (0, 64)
        poisoned = order.shard == 0 and any(row not in order.guilty for row in range(first, end))
        return 5.0, Ends() if poisoned else order

    world = World(monkeypatch, {"a": 2}, script)
    run = Run(world, 3, rows=64).work()
    assert sorted(run.reports) == [1, 2]
    assert list(run.schedule.given_up) == [0]
    assert len(world.actors) < 60


def test_a_shard_that_dies_whatever_its_rows_blames_one_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    def script(actor: Actor, order: Order) -> tuple[float, Any]:
        return 5.0, Ends() if order.shard == 0 and order.probe is None else order

    world = World(monkeypatch, {"a": 2}, script)
    run = Run(world, 3, rows=16).work()
    assert list(run.schedule.given_up) == [0]
    assert not any(order.guilty for order in run.orders)


def test_a_shard_that_cannot_even_be_read_is_looked_through(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch, {"a": 1}, lambda actor, order: (5.0, Ends() if order.shard == 0 else order))
    run = Run(world, 2, rows=1_000, workers=1).work()
    assert list(run.schedule.given_up) == [0]
    assert [order.probe for order in run.orders if order.shard == 0] == [None, None, (0, 0), (0, 0)]


def test_an_error_that_a_worker_raises_is_taken_for_its_death(monkeypatch: pytest.MonkeyPatch) -> None:
    errors = iter([StorageError("slow down"), StorageError("slow down")])

    def script(actor: Actor, order: Order) -> tuple[float, Any]:
        return 5.0, next(errors, order) if order.shard == 0 else order

    world = World(monkeypatch, {"a": 1}, script)
    run = Run(world, 3, rows=64, workers=1).work()
    assert sorted(run.reports) == [0, 1, 2]
    assert len(world.actors) == 1
    assert {order.probe for order in run.orders} == {None}


# --- memory -----------------------------------------------------------------------------------------------------------


def _starved() -> Ends:
    return Ends(ray.exceptions.OutOfMemoryError("1 worker(s) were killed due to the node running low on memory."))


def test_a_shard_that_needs_too_much_memory_kills_worker_after_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    def script(actor: Actor, order: Order) -> tuple[float, Any]:
        return 5.0, _starved() if order.shard == 1 and (order.max_frames or 0) > 2_048 else order

    world = World(monkeypatch, {"a": 1}, script)
    run = Run(world, 3, rows=64, workers=1).work()
    assert sorted(run.reports) == [0, 1, 2]
    assert [order.max_frames for order in run.orders if order.shard == 1] == [8_192, 4_096, 2_048]
    assert {order.max_frames for order in run.orders if order.shard != 1} == {8_192}


def test_a_shard_whose_rows_kill_only_together_is_never_made_in_smaller_batches(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # As where the kernel, and not Ray, ends what takes too much memory: such a death looks like any other.
    def script(actor: Actor, order: Order) -> tuple[float, Any]:
        return 5.0, Ends() if order.probe is None and order.shard == 0 and (order.max_frames or 0) > 4_096 else order

    world = World(monkeypatch, {"a": 1}, script)
    run = Run(world, 2, rows=64, workers=1).work()
    assert sorted(run.reports) == [0, 1]
    assert run.reports[0].max_frames == 4_096
    assert not run.reports[0].guilty


def test_a_row_that_needs_too_much_memory_is_never_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def script(actor: Actor, order: Order) -> tuple[float, Any]:
        first, end = order.probe or (0, 8)
        return 5.0, _starved() if first <= 6 < end and 6 not in order.guilty else order

    world = World(monkeypatch, {"a": 1}, script)
    run = Run(world, 1, rows=8, workers=1).work()
    assert list(run.reports[0].guilty) == [6]
    assert run.reports[0].max_frames == 8_192 >> MAX_HALVINGS


def test_workers_whose_machine_has_no_memory_for_two_shards_get_two_again_and_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def script(actor: Actor, order: Order) -> tuple[float, Any]:
        return 5.0, _starved() if actor.in_hand else order

    world = World(monkeypatch, {"a": 1}, script, room=2)
    run = Run(world, 20, rows=64, workers=1).work()
    assert sorted(run.reports) == list(range(20))
    assert len(world.actors) == 2
    assert {order.max_frames for order in run.orders} == {8_192}


# --- starts -----------------------------------------------------------------------------------------------------------


def test_a_worker_that_never_gets_ready_is_waited_for_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch, {"a": 1}, steady())
    world.load_seconds = 10 * crews.START_SECONDS
    with pytest.raises(JobError, match=r"no worker can start, after 3 tries; .* was not ready after 1800 s"):
        Run(world, 1, workers=1).work()
    assert world.seconds < 4 * crews.START_SECONDS


@pytest.mark.parametrize("good", [True, False])
def test_one_bad_machine_ends_a_run_whose_other_workers_are_still_loading(
    monkeypatch: pytest.MonkeyPatch, good: bool
) -> None:
    def load(actor: Actor, recipe: Any, environment: Any) -> Any:
        bad = actor.machine == "bad" or not good
        seconds, value = (5.0, RuntimeError("no driver")) if bad else (60.0, 1)
        return actor.world.answer(actor, Reference(), seconds, value)

    monkeypatch.setattr(Actor, "_load", load)
    world = World(monkeypatch, {"bad": 4, "good": 4}, steady())
    run = Run(world, 6, workers=8)
    if good:
        assert sorted(run.work().reports) == list(range(6))
    else:
        with pytest.raises(JobError, match="no worker can start"):
            run.work()


# --- ends and costs ---------------------------------------------------------------------------------------------------


def test_a_worker_that_hangs_when_the_run_is_to_stop_keeps_it_alive(monkeypatch: pytest.MonkeyPatch) -> None:
    def script(actor: Actor, order: Order) -> tuple[float, Any]:
        actor.hangs = True
        return 0.0, NEVER

    world = World(monkeypatch, {"a": 1}, script)
    Run(world, 1, workers=1).work(seconds=50)
    assert world.seconds < 50 + 15
    assert all(actor.dead for actor in world.actors)


def test_a_driver_of_a_thousand_workers_spends_its_time_on_each_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch, {f"m{number}": 8 for number in range(125)}, steady(60.0), room=2)
    run = Run(world, 3_000, workers=1_000)
    began = time.process_time()
    run.work()
    spent = time.process_time() - began
    assert len(run.reports) == 3_000
    # The fake cluster's own work is in it.
    assert spent / 3_000 < 0.005


# --- what the driver sees ---------------------------------------------------------------------------------------------


def test_a_worker_is_not_seen_from_its_place_to_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch, {"a": 1}, lambda actor, order: (30.0, Ends() if actor is world.actors[0] else order))
    run = Run(world, 2, workers=1).work()
    first = [worker for look in run.looks for worker in look if worker.name == f"a:{id(world.actors[0])}"]
    assert list(dict.fromkeys(worker.state for worker in first)) == ["starting", "at work", "lost"]
    (held,) = next(worker.held for worker in reversed(first) if worker.state == "at work")
    assert (held.task, held.tries) == (0, 1)
    assert 25 < held.seconds <= 30
    lost = [worker for worker in first if worker.state == "lost"]
    assert {worker.held for worker in lost} == {lost[0].held}
    assert lost[-1].seconds == pytest.approx(crews.LOST_SECONDS, abs=2)
    assert len(run.looks) == pytest.approx(world.seconds, abs=5)  # a look a second


def test_a_worker_without_a_place_or_a_task_seems_to_work(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch, {"a": 2}, steady())
    run = Run(world, 1, workers=3).work()
    assert sorted(worker.state for worker in run.looks[-1]) == ["at work", "idle", "waiting"]


def test_the_second_try_at_a_shard_passes_for_its_first(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch, {"a": 1}, lambda actor, order: (5.0, Ends() if len(world.actors) == 1 else order))
    run = Run(world, 1, workers=1).work()
    held = {each.tries for look in run.looks for worker in look if worker.state == "at work" for each in worker.held}
    assert held == {1, 2}
