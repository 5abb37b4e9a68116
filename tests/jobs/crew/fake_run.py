"""A crew at work on a fake cluster, and what it told."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from jobs.crew.actor import Recipe
from jobs.crew.crew import Crew
from jobs.crew.isolation import Case
from jobs.crew.placement import Share
from jobs.crew.schedule import Schedule
from jobs.crew.sight import Sight
from jobs.worker.worker import Order
from tests.jobs.fake_ray import Script, World

RECIPE = Recipe(make="nobody:makes_it", arguments={})
STALL = 300.0


class Run:
    """A crew at work on a fake cluster."""

    def __init__(self, world: World, tasks: int, *, rows: int | None = None, workers: Any = 2, cpus: float = 4) -> None:
        self.world = world
        self.reports: dict[int, Any] = {}
        self.orders: list[Any] = []
        self.looks: list[Sequence[Sight]] = []
        self.schedule = Schedule(range(tasks), rows=None if rows is None else lambda task: rows)
        share = Share(cpus=cpus, gpus=0, threads=1)
        self.crew = Crew(RECIPE, workers=workers, share=share, payload=self._payload, stall_seconds=STALL)

    def _payload(self, task: int) -> Order:
        case: Case = self.schedule.case(task)
        self.orders.append(Order(task, case.probe, case.guilty, 8_192 >> case.halvings))
        return self.orders[-1]

    def work(self, until: Callable[[], bool] = lambda: False, seconds: float = 10_000_000) -> Run:
        stop = lambda: until() or self.world.seconds > seconds  # noqa: E731
        self.crew.work(self.schedule, self._report, stop, self.looks.append)
        return self

    def _report(self, task: int, report: Any) -> None:
        assert task not in self.reports
        self.reports[task] = report


def steady(seconds: float = 60.0) -> Script:
    return lambda actor, order: (seconds, order)
