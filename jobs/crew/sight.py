"""What the driver sees of its workers at one moment: for the view and the metrics, which know nothing of Ray."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

State = Literal["waiting", "starting", "idle", "at work", "lost"]
STATES: tuple[State, ...] = ("waiting", "starting", "idle", "at work", "lost")


@dataclass(frozen=True, slots=True)
class Held:
    """A task in a worker's hands."""

    task: int
    tries: int  # how often it was handed out, this time included
    seconds: float  # since then


@dataclass(frozen=True, kw_only=True, slots=True)
class Sight:
    """One worker.

    Attributes:
        name: ``host:pid``, as its reports name it; empty while it waits for a place.
        gpus: their ids on its machine.
        state: waiting for a place; starting, that is loading its model; idle; at work; lost, of late.
        seconds: since it was asked for (waiting), placed (starting), ready (idle, at work), or lost.
        held: tasks in its hands, or that were in its hands when it was lost.
    """

    name: str
    gpus: Sequence[str]
    state: State
    seconds: float
    held: Sequence[Held] = ()
