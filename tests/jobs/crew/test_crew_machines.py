"""What a crew does about machines that come and go; on a cluster that is fake."""

from __future__ import annotations

from typing import Any

import pytest
import ray.exceptions

from jobs.crew import crew as crews
from jobs.crew.schedule import MAX_MOVES
from jobs.worker.worker import Order
from tests.jobs.crew.fake_run import Run, steady
from tests.jobs.fake_ray import Actor, Ends, World


@pytest.mark.parametrize(
    "error", [None, ray.exceptions.ActorDiedError(), ray.exceptions.ActorUnavailableError("?", None)]
)
def test_machines_that_go_away_use_up_a_shards_tries(
    monkeypatch: pytest.MonkeyPatch, error: Exception | None, caplog: pytest.LogCaptureFixture
) -> None:
    world = World(monkeypatch, {"m0": 1}, steady())
    for number in range(10):
        world.at(30 + 40 * number, lambda number=number: world.lose(f"m{number}", error))
        world.at(31 + 40 * number, lambda number=number: world.add(f"m{number + 1}", 1))
    run = Run(world, 2, rows=64, workers=1).work()
    assert sorted(run.reports) == [0, 1]
    assert "was lost with its machine; it is tried again" in caplog.text
    assert {order.probe for order in run.orders} == {None}
    assert "a worker could not start" not in caplog.text


def test_a_shard_that_loses_every_machine_never_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    def script(actor: Actor, order: Order) -> tuple[float, Any]:
        return 5.0, Ends(ray.exceptions.NodeDiedError("gone"))

    world = World(monkeypatch, {"a": 1}, script)
    run = Run(world, 1, workers=1).work()
    assert list(run.schedule.given_up) == [0]
    assert len(run.orders) == MAX_MOVES + 1


def test_a_machine_that_is_being_drained_gets_more_shards(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    world = World(monkeypatch, {"a": 1, "b": 1}, steady(100.0))
    world.at(30, lambda: world.drain("a"))
    world.at(200, lambda: world.add("c", 1))
    run = Run(world, 12, workers=2).work()
    assert sorted(run.reports) == list(range(12))
    by_machine = {actor.machine: actor.runs for actor in world.actors if actor.machine}
    assert by_machine["a"] == 1  # that in hand was done
    assert by_machine["b"] > 1
    assert by_machine["c"] > 1
    assert "failed" not in caplog.text


def test_a_death_on_a_machine_that_is_being_drained_costs_a_try(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    world = World(monkeypatch, {"a": 1}, steady(100.0))
    world.at(30, lambda: world.drain("a"))
    world.at(60, lambda: world.actors[0].die(ray.exceptions.ActorDiedError()))
    world.at(70, lambda: world.add("b", 1))
    run = Run(world, 1, workers=1).work()
    assert sorted(run.reports) == [0]
    assert "failed" not in caplog.text


def test_a_job_waits_without_a_word_while_there_is_no_machine(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    world = World(monkeypatch, {"a": 1}, steady())
    world.at(90, lambda: world.lose("a"))
    world.at(400, lambda: world.add("b", 1))
    run = Run(world, 3, workers="auto").work()
    assert sorted(run.reports) == [0, 1, 2]
    waiting = [record.getMessage() for record in caplog.records if "waiting for room" in record.msg]
    assert len(waiting) == 1
    assert "a worker needs 4 CPUs and 0 GPUs; the cluster has 0 machines" in waiting[0]


def test_new_machines_of_a_running_job_stay_idle(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch, {"a": 1}, steady())
    world.at(30, lambda: world.add("b", 2))
    run = Run(world, 12, workers="auto").work()
    assert sorted(run.reports) == list(range(12))
    assert {actor.machine: actor.runs for actor in world.actors} == {"a": 4, "b": 4}


def test_workers_that_find_no_place_keep_work_from_those_that_have_one(monkeypatch: pytest.MonkeyPatch) -> None:
    together: list[int] = []

    def script(actor: Actor, order: Order) -> tuple[float, Any]:
        together.append(actor.in_hand)
        return 60.0, order

    world = World(monkeypatch, {"a": 2}, script, room=2)
    run = Run(world, 6, workers=8).work()
    assert sorted(run.reports) == list(range(6))
    # Once it is clear that the six others find no place, shards are taken two at a time.
    assert sum(together) >= 2
    assert world.seconds < 60 * 3 + crews.PATIENCE_SECONDS + 20


def test_workers_for_machines_that_are_gone_are_asked_for_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch, {"a": 1, "b": 1, "c": 1}, steady(200.0))
    world.at(30, lambda: (world.lose("b"), world.lose("c")))
    run = Run(world, 6, workers="auto")
    run.work(until=lambda: len(run.reports) == 2)
    alive = [actor for actor in world.actors if actor.runs]
    assert len(alive) == 3
    assert len(world.actors) - sum(actor.dead for actor in world.actors) == 0
