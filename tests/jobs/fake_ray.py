"""Ray without Ray: machines, actors and a clock that a test moves, for crews of any size in no time."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
import ray.exceptions

from jobs.crew import crew, member, session
from jobs.crew.isolation import Death

NEVER = object()  # the answer of one that hangs
START = 1_000.0  # of the clock

# What a worker does with a task: after how many seconds it answers what; an exception is raised, `Ends` ends it.
Script = Callable[["Actor", Any], tuple[float, Any]]


@dataclass(frozen=True)
class Ends:
    """The actor ends while it has the task in hand, and Ray says this."""

    error: Exception = field(default_factory=lambda: ray.exceptions.ActorDiedError())


def machine_died() -> Exception:
    error = ray.exceptions.ActorDiedError()
    error.error_msg = "The actor died because its node has died. Node Id: x"
    error.args = (error.error_msg,)
    return error


@dataclass(eq=False)
class Reference:
    call: Any = None
    value: Any = NEVER


class Method:
    def __init__(self, ask: Callable[..., Reference]) -> None:
        self.remote = ask


class Actor:
    """One of the actors; its pulse moves on by itself unless `hangs`."""

    def __init__(self, world: World) -> None:
        self.world, self.machine, self.hangs, self.deaf, self.dead = world, None, False, False, False
        self.asked: list[Reference] = []
        self._tasks: list[Reference] = []
        self.runs = 0
        self.place, self.load = Method(self._place), Method(self._load)
        self.run, self.pulse = Method(self._run), Method(self._pulse)
        self._waits_for_place = Reference()

    def _place(self) -> Reference:
        self.world.place(self)
        return self._waits_for_place

    def placed(self, machine: str) -> None:
        self.machine = machine
        self.world.answer(self, self._waits_for_place, 0.1, self._where())

    def _where(self) -> dict[str, Any]:
        return {"name": f"{self.machine}:{id(self)}", "pid": id(self), "node": self.machine, "gpus": ["0"]}

    def _load(self, recipe: Any, environment: Any) -> Reference:
        return self.world.answer(self, Reference(), self.world.load_seconds, self.world.room)

    def _run(self, task: Any) -> Reference:
        self.runs += 1
        seconds, value = self.world.script(self, task)
        self._tasks.append(self.world.answer(self, Reference(), seconds, value))
        return self._tasks[-1]

    @property
    def in_hand(self) -> int:
        """Tasks, but the one that it is just given."""
        self._tasks = [reference for reference in self._tasks if reference.value is NEVER]
        return len(self._tasks)

    def _pulse(self) -> Reference:
        value = NEVER if self.deaf else 0 if self.hangs else int(self.world.now)
        return self.world.answer(self, Reference(), 0.01, value)

    def die(self, error: Exception) -> None:
        if self.dead:
            return
        self.dead = True
        self.world.free(self)
        for reference in self.asked:
            if reference.value is NEVER:
                self.world.deliver(reference, error)


class World:
    """A cluster.

    Args:
        machines: by name, how many workers each holds.
        room: tasks that a worker takes at once.
    """

    def __init__(self, patch: pytest.MonkeyPatch, machines: dict[str, int], script: Script, room: int = 1) -> None:
        self.now, self.script, self.room = START, script, room
        self.load_seconds = 5.0
        self.free_slots, self.machines = dict(machines), dict(machines)
        self.leaving: set[str] = set()
        self.actors: list[Actor] = []
        self._pending: list[Actor] = []
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self._answers: list[tuple[Any, Any]] = []
        fake = SimpleNamespace(
            put=lambda value: value,
            remote=lambda kind: SimpleNamespace(options=lambda **options: SimpleNamespace(remote=self._make)),
            kill=lambda actor, no_restart: actor.die(ray.exceptions.ActorDiedError()),
            nodes=self._nodes,
            exceptions=ray.exceptions,
        )
        for module in (crew, member, session):
            patch.setattr(module, "ray", fake)
        patch.setattr(crew, "time", SimpleNamespace(monotonic=lambda: self.now))
        patch.setattr(crew, "Inbox", lambda: self)
        for module in (crew, session):
            patch.setattr(module, "draining", lambda: set(self.leaving))

    # --- what a test does ---------------------------------------------------------------------------------------------

    def at(self, seconds: float, action: Callable[[], None]) -> None:
        """Does something so many seconds after the start."""
        heapq.heappush(self._events, (max(START + seconds, self.now), next(self._order), action))

    def add(self, machine: str, slots: int) -> None:
        self.machines[machine] = self.free_slots[machine] = slots
        waiting, self._pending = self._pending, []
        for actor in waiting:
            self.place(actor)

    def lose(self, machine: str, error: Exception | None = None) -> None:
        del self.machines[machine], self.free_slots[machine]
        for actor in self.actors:
            if actor.machine == machine:
                actor.die(error or machine_died())

    def drain(self, machine: str) -> None:
        self.leaving.add(machine)

    @property
    def seconds(self) -> float:
        return self.now - START

    # --- what the crew does -------------------------------------------------------------------------------------------

    def expect(self, reference: Reference, call: Any) -> None:
        reference.call = call
        if reference.value is not NEVER:
            self._answers.append((call, reference.value))

    def take(self, seconds: float) -> list[tuple[Any, Any]]:
        until = self.now + seconds
        while not self._answers and self._events and self._events[0][0] <= until:
            self.now, _, action = heapq.heappop(self._events)
            action()
        if not self._answers:
            self.now = until
        found, self._answers = self._answers, []
        return found

    # --- what actors do -----------------------------------------------------------------------------------------------

    def place(self, actor: Actor) -> None:
        for machine, slots in self.free_slots.items():
            if slots and machine not in self.leaving and not actor.dead:
                self.free_slots[machine] -= 1
                actor.placed(machine)
                return
        self._pending.append(actor)

    def free(self, actor: Actor) -> None:
        if actor.machine in self.free_slots:
            self.free_slots[actor.machine] += 1
            waiting, self._pending = self._pending, []
            for other in waiting:
                self.place(other)

    def answer(self, actor: Actor, reference: Reference, seconds: float, value: Any) -> Reference:
        actor.asked = [other for other in actor.asked if other.value is NEVER] + [reference]
        if actor.dead:
            self.deliver(reference, ray.exceptions.ActorDiedError())
        elif value is not NEVER:
            self.at(self.seconds + seconds, lambda: self._act(actor, reference, value))
        return reference

    def _act(self, actor: Actor, reference: Reference, value: Any) -> None:
        if actor.dead:
            return
        if isinstance(value, Ends):
            actor.die(value.error)
        elif isinstance(value, Exception):
            self.deliver(reference, ray.exceptions.RayTaskError("run", "", value))
        else:
            self.deliver(reference, value)

    def deliver(self, reference: Reference, value: Any) -> None:
        reference.value = value
        if reference.call is not None:
            self._answers.append((reference.call, value))

    def _make(self) -> Actor:
        self.actors.append(Actor(self))
        return self.actors[-1]

    def _nodes(self) -> list[dict[str, Any]]:
        return [
            {"NodeID": name, "Alive": True, "Resources": {"CPU": 4.0 * slots}} for name, slots in self.machines.items()
        ]


def killer(rows: int, guilty: dict[int, Death]) -> Script:
    """A worker that takes a second a row, and dies or hangs over rows that are guilty."""

    def script(actor: Actor, order: Any) -> tuple[float, Any]:
        first, end = order.probe or (0, rows)
        for row in range(first, end):
            if row in guilty and row not in order.guilty:
                if guilty[row].hung:
                    actor.hangs = True
                    return 0.0, NEVER
                return 1.0 + row - first, Ends()
        return 1.0 + end - first, order

    return script
