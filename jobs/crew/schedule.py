"""Which task comes next, and when one has been tried often enough. Decisions only: no clock, no Ray, no storage."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass

from jobs.crew.isolation import Case, Death, Isolation

MAX_TRIES = 3
MAX_MOVES = 20  # machines that a task may lose under it
MAX_HALVINGS = 3  # of the frame budget of a task that its machines have too little memory for
SUSPECT_DEATHS = 2  # after which a task's rows are looked through


class BrokenWorker(Exception):
    """The worker's process is of no more use (its CUDA context is poisoned): the task goes on in another one."""


@dataclass(slots=True)
class _History:
    """What went wrong with a task.

    Attributes:
        returns: how often it came back undone, probes included.
        failures: errors that it raised, and deaths over it where its rows cannot be looked through.
        deaths: of workers that had nothing else in hand.
        moves: machines that went away under it.
        halvings: deaths for want of memory, each of which halves the frame budget.
    """

    returns: int = 0
    failures: int = 0
    deaths: int = 0
    moves: int = 0
    halvings: int = 0
    isolation: Isolation | None = None


class Schedule:
    """The tasks of a run, each in one place: not yet handed out, in hand, done, or given up.

    Holds the tasks in hand and those that failed; the rest stays in the iterable, which may be as long as it likes.

    A worker may have several tasks in hand. When it dies nobody knows which of them was to blame, so that counts as a
    try for none; but each is then handed out alone, and its next loss counts. So every task is lost a bounded number
    of times, and one that kills its workers takes no other with it.

    Args:
        rows: how many rows a task has. With it a task that kills its workers is not given up, but looked through for
            the rows to blame (see `isolation`).
    """

    def __init__(
        self, tasks: Iterable[int], max_tries: int = MAX_TRIES, rows: Callable[[int], int] | None = None
    ) -> None:
        self._source: Iterator[int] = iter(tasks)
        self._fresh: deque[int] = deque()  # taken from the source to see whether they are there, or back at no fault
        self._suspect: deque[int] = deque()  # their workers died
        self._failed: deque[int] = deque()  # they raised
        self._in_hand: set[int] = set()
        self._alone: set[int] = set()  # of those in hand
        self._histories: dict[int, _History] = {}
        self._max_tries = max_tries
        self._rows = rows
        self._exhausted = False
        self.given_up: dict[int, str] = {}  # task: its last failure

    def next(self, beside: Collection[int] = (), spare: int = 0) -> int | None:
        """The next task for a worker, or None while there is none for it.

        A worker with empty hands gets one that is suspect first: the one that replaces the worker that died of it has
        empty hands, so the search for what is to blame goes on beside all other work. What raised an error comes last:
        by then its cause may be gone.

        Args:
            beside: the tasks that this worker has in hand. Those that came back are handed out beside none, and none
                beside them.
            spare: how many fresh tasks must be left, so that other workers find one too.
        """
        if not self._alone.isdisjoint(beside):
            return None
        self._look_ahead(spare + 1)
        if self._suspect and not beside:
            task = self._suspect.popleft()
            self._alone.add(task)
        elif len(self._fresh) > spare:
            task = self._fresh.popleft()
        elif self._failed and not beside and not self._fresh:
            task = self._failed.popleft()
            self._alone.add(task)
        else:
            return None
        self._in_hand.add(task)
        return task

    def case(self, task: int) -> Case:
        """How a task is to be handed out."""
        history = self._histories.get(task)
        if history is None:
            return Case()
        tries, isolation = history.returns + 1, history.isolation
        if isolation is None:
            return Case(halvings=history.halvings, tries=tries)
        halvings = history.halvings + isolation.fruitless
        return Case(probe=isolation.probe, guilty=dict(isolation.guilty), halvings=halvings, tries=tries)

    def done(self, task: int) -> bool:
        """What was handed out is finished; returns whether the task is, or goes back for what comes after a probe."""
        self._take_back(task)
        history = self._histories.get(task)
        if history is not None and history.isolation is not None and history.isolation.probe is not None:
            history.returns += 1
            history.isolation.ended(None)
            self._suspect.append(task)
            return False
        self._histories.pop(task, None)
        return True

    def failed(self, task: int, reason: str) -> int:
        """The task failed, by itself; returns how often by now. It goes back, or is given up."""
        history = self._returned(task)
        history.failures += 1
        if history.failures < self._max_tries:
            self._failed.append(task)
        else:
            self._give_up(task, reason)
        return history.failures

    def died(self, task: int, death: Death) -> int:
        """A worker died that had this task alone in hand; returns how often by now. It goes back, or is given up."""
        history = self._returned(task)
        history.deaths += 1
        if death.starved and history.halvings < MAX_HALVINGS:
            history.halvings += 1
        elif history.isolation is not None:
            history.isolation.ended(death)
        elif self._rows is None:
            history.failures += 1
        elif history.deaths - history.halvings >= SUSPECT_DEATHS:
            history.isolation = Isolation(self._rows(task))
        if history.failures >= self._max_tries or (history.isolation is not None and history.isolation.hopeless):
            self._give_up(task, death.reason)
        else:
            self._suspect.append(task)
        return history.deaths

    def lost(self, task: int) -> None:
        """The task was lost with its worker, which had others in hand. It goes back."""
        self._returned(task)
        self._suspect.append(task)

    def moved(self, task: int, reason: str) -> None:
        """The task was lost with its worker's machine, at nobody's fault. It goes back, a bounded number of times."""
        alone = task in self._alone
        history = self._returned(task)
        history.moves += 1
        if history.moves > MAX_MOVES:
            self._give_up(task, f"{reason}, as {MAX_MOVES} times before")
        elif alone:
            self._suspect.append(task)
        else:
            self._fresh.append(task)

    @property
    def in_hand(self) -> int:
        """How many tasks are handed out."""
        return len(self._in_hand)

    @property
    def finished(self) -> bool:
        """Whether nothing is left to hand out or to wait for."""
        self._look_ahead(1)
        return self._exhausted and not (self._fresh or self._suspect or self._failed or self._in_hand)

    def _returned(self, task: int) -> _History:
        """Takes back a task that is not done."""
        self._take_back(task)
        history = self._histories.setdefault(task, _History())
        history.returns += 1
        return history

    def _give_up(self, task: int, reason: str) -> None:
        self.given_up[task] = reason
        del self._histories[task]

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
