"""Which task comes next, and when one has been tried often enough. Decisions only: no clock, no Ray, no storage."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator

MAX_TRIES = 3


class BrokenWorker(Exception):
    """The worker's process is of no more use (its CUDA context is poisoned): the task goes on in another one."""


class Schedule:
    """The tasks of a run, each in one place: not yet handed out, in hand, done, or given up.

    Holds the tasks in hand and those that failed; the rest stays in the iterable, which may be as long as it likes.
    """

    def __init__(self, tasks: Iterable[int], max_tries: int = MAX_TRIES) -> None:
        self._fresh: Iterator[int] = iter(tasks)
        self._again: deque[int] = deque()
        self._in_hand: set[int] = set()
        self._failures: dict[int, list[str]] = {}
        self._max_tries = max_tries
        self._exhausted = False
        self.given_up: dict[int, str] = {}  # task: its last failure

    def next(self) -> int | None:
        """The next task to hand out, or None while there is none; fresh ones before those that failed."""
        task = next(self._fresh, None)
        if task is None:
            self._exhausted = True
            task = self._again.popleft() if self._again else None
        if task is not None:
            self._in_hand.add(task)
        return task

    def done(self, task: int) -> None:
        """The task is finished."""
        self._in_hand.remove(task)
        self._failures.pop(task, None)

    def failed(self, task: int, reason: str) -> int:
        """The task failed, or was lost with its worker; returns how often by now. It goes back, or is given up."""
        self._in_hand.remove(task)
        failures = self._failures.setdefault(task, [])
        failures.append(reason)
        if len(failures) < self._max_tries:
            self._again.append(task)
        else:
            self.given_up[task] = reason
        return len(failures)

    @property
    def in_hand(self) -> int:
        """How many tasks are handed out."""
        return len(self._in_hand)

    @property
    def finished(self) -> bool:
        """Whether nothing is left to hand out or to wait for; known once `next` has said None."""
        return self._exhausted and not self._again and not self._in_hand
