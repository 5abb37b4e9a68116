"""The answers of many actors in one queue: what an answer costs does not grow with how many are waited for."""

from __future__ import annotations

import queue
from concurrent.futures import Future
from typing import Any, Generic, TypeVar

C = TypeVar("C")


class Inbox(Generic[C]):
    """Calls that are under way, and the answers that have come."""

    def __init__(self) -> None:
        self._answers: queue.SimpleQueue[tuple[C, Future[Any]]] = queue.SimpleQueue()

    def expect(self, reference: Any, call: C) -> None:
        """Waits for what an object reference stands for; `call` says what it answers."""
        reference.future().add_done_callback(lambda future: self._answers.put((call, future)))

    def take(self, seconds: float) -> list[tuple[C, Any]]:
        """All answers that are there, after at most so many seconds of waiting for one: results, or exceptions."""
        try:
            found = [self._answers.get(timeout=seconds)]
            while not self._answers.empty():
                found.append(self._answers.get_nowait())
        except queue.Empty:
            return []
        return [(call, future.exception() or future.result()) for call, future in found]
