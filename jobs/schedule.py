"""Which task comes next, and when one has been tried often enough. Decisions only: no clock, no Ray, no storage."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterable, Iterator

MAX_TRIES = 3


class BrokenWorker(Exception):
    """The worker's process is of no more use (its CUDA context is poisoned): the task goes on in another one."""


class Schedule:
    """The tasks of a run, each in one place: not yet handed out, in hand, done, or given up.

    Holds the tasks in hand and those that failed; the rest stays in the iterable, which may be as long as it likes.

    A worker may have several tasks in hand. When it dies nobody knows which of them was to blame, so that counts as a
    try for none; but each is then handed out alone, and its next loss counts. So every task is lost a bounded number
    of times, and one that kills its workers takes no other with it.
    """

    def __init__(self, tasks: Iterable[int], max_tries: int = MAX_TRIES) -> None:
        self._source: Iterator[int] = iter(tasks)
        self._fresh: deque[int] = deque()  # taken from the source to see whether they are there
        self._again: deque[int] = deque()
        self._in_hand: set[int] = set()
        self._alone: set[int] = set()  # of those in hand
        self._failures: dict[int, list[str]] = {}
        self._max_tries = max_tries
        self._exhausted = False
        self.given_up: dict[int, str] = {}  # task: its last failure

    def next(self, beside: Collection[int] = (), spare: int = 0) -> int | None:
        """The next task for a worker, or None while there is none for it; fresh ones before those that came back.

        Args:
            beside: the tasks that this worker has in hand. Those that came back are handed out beside none, and none
                beside them.
            spare: how many fresh tasks must be left, so that other workers find one too.
        """
        if not self._alone.isdisjoint(beside):
            return None
        self._look_ahead(spare + 1)
        if len(self._fresh) > spare:
            task = self._fresh.popleft()
        elif self._again and not beside and not self._fresh:
            task = self._again.popleft()
            self._alone.add(task)
        else:
            return None
        self._in_hand.add(task)
        return task

    def done(self, task: int) -> None:
        """The task is finished."""
        self._take_back(task)
        self._failures.pop(task, None)

    def failed(self, task: int, reason: str) -> int:
        """The task failed, by itself; returns how often by now. It goes back, or is given up."""
        self._take_back(task)
        failures = self._failures.setdefault(task, [])
        failures.append(reason)
        if len(failures) < self._max_tries:
            self._again.append(task)
        else:
            self.given_up[task] = reason
        return len(failures)

    def lost(self, task: int) -> None:
        """The task was lost with its worker, which had others in hand. It goes back."""
        self._take_back(task)
        self._again.append(task)

    @property
    def in_hand(self) -> int:
        """How many tasks are handed out."""
        return len(self._in_hand)

    @property
    def finished(self) -> bool:
        """Whether nothing is left to hand out or to wait for; known once `next` has said None."""
        return self._exhausted and not self._fresh and not self._again and not self._in_hand

    def _take_back(self, task: int) -> None:
        self._in_hand.remove(task)
        self._alone.discard(task)

    def _look_ahead(self, count: int) -> None:
        while len(self._fresh) < count and not self._exhausted:
            task = next(self._source, None)
            if task is None:
                self._exhausted = True
            else:
                self._fresh.append(task)
