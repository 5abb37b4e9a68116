"""Work that is done before its results are asked for: in order, and no more at a time than memory is granted for."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from functools import partial
from typing import TypeVar

T = TypeVar("T")
Admit = Callable[[int], None]  # waits until there is room for what weighs so much


class Lookahead:
    """Threads that are ahead of whoever takes their results; for one round of tasks.

    Args:
        threads: how many.
        tasks: that are at work or done, and not yet taken.
        weight: of what these may hold; one task alone may hold more.
    """

    def __init__(self, threads: int, *, tasks: int, weight: int) -> None:
        self._threads, self._tasks, self._weight = threads, tasks, weight
        self._changed = threading.Condition()
        self._held: dict[int, int] = {}  # weight by task
        self._first = 0  # the task whose result is taken next
        self._ended = False

    def results(self, tasks: Iterable[Callable[[Admit], T]]) -> Iterator[T]:
        """What tasks return, in their order. What one of them raises ends it all.

        Args:
            tasks: each calls what it gets before it takes memory, as often as it likes.
        """
        waiting: deque[Future[T]] = deque()
        with ThreadPoolExecutor(self._threads, "reader") as pool:
            try:
                for number, task in enumerate(tasks):
                    waiting.append(pool.submit(task, partial(self._admit, number)))
                    if len(waiting) >= self._tasks:
                        yield self._taken(waiting)
                while waiting:
                    yield self._taken(waiting)
            finally:
                for future in waiting:
                    future.cancel()
                with self._changed:
                    self._ended = True
                    self._changed.notify_all()

    def _taken(self, waiting: deque[Future[T]]) -> T:
        result = waiting.popleft().result()
        with self._changed:
            self._held.pop(self._first, None)
            self._first += 1
            self._changed.notify_all()
        return result

    def _admit(self, number: int, weight: int) -> None:
        with self._changed:
            # The first is never kept waiting: the room of the others is free only after it.
            self._changed.wait_for(
                lambda: self._ended or number == self._first or sum(self._held.values()) + weight <= self._weight
            )
            if self._ended:
                raise CancelledError
            self._held[number] = self._held.get(number, 0) + weight
