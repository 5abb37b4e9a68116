"""A member of the crew: one actor, as the driver sees it."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field
from typing import Any, Literal

import ray

from jobs.crew.sight import Held, Sight, State

Stage = Literal["placing", "loading", "ready"]

NO_TASK = -1


@dataclass(eq=False, slots=True)
class Call:
    """Something that an actor was asked for.

    Attributes:
        task: in its hands until it answers; `NO_TASK` where it was asked for something else.
        tries: how often the task was handed out, this time included.
        since: when that was.
        reference: to the answer, which is dropped when nobody holds this.
    """

    member: Member
    task: int
    reference: Any
    tries: int = 1
    since: float = 0.0


@dataclass(eq=False, slots=True)
class Member:
    """One actor, and what the driver waits for from it.

    Attributes:
        since: when its stage began.
        calls: that it has not answered; of tasks, once it is ready.
        room: how many tasks it takes at once.
        place: where it is: name (``host:pid``), pid, node, GPU ids; empty until it is placed.
        pulse: the last number that it answered when it was asked whether it gets on.
        got_on: when that number moved, or when a task was handed out, done or failed.
        asked: the question after its pulse that it has not answered.
        asked_at: when it was put.
    """

    actor: Any
    since: float
    stage: Stage = "placing"
    calls: list[Call] = field(default_factory=list)
    room: int = 1
    place: dict[str, Any] = field(default_factory=dict)
    pulse: int = 0
    got_on: float = 0.0
    asked: Call | None = None
    asked_at: float = 0.0

    @property
    def tasks(self) -> list[int]:
        """In its hands."""
        return [call.task for call in self.calls if call.task != NO_TASK]

    @property
    def name(self) -> str:
        """For messages."""
        return f"its worker (process {self.place.get('pid', 'not yet started')})"

    def sight(self, now: float, state: State | None = None) -> Sight:
        """What is to be seen of it.

        Args:
            state: where it is another than its stage says.
        """
        held = tuple(Held(call.task, call.tries, now - call.since) for call in self.calls if call.task != NO_TASK)
        ready: State = "at work" if held else "idle"
        staged: dict[Stage, State] = {"placing": "waiting", "loading": "starting", "ready": ready}
        return Sight(
            name=self.place.get("name", ""),
            gpus=tuple(self.place.get("gpus", ())),
            state=state or staged[self.stage],
            seconds=now - self.since,
            held=held,
        )

    def felt(self, pulse: int, now: float) -> None:
        """Takes the answer to a question after its pulse."""
        self.asked = None
        if pulse != self.pulse:
            self.pulse, self.got_on = pulse, now

    def kill(self) -> None:
        """Ends its process, wherever that is; what it answers from now on is nobody's."""
        self.calls.clear()
        self.asked = None
        with contextlib.suppress(Exception):  # it is dead, or its machine is
            ray.kill(self.actor, no_restart=True)
