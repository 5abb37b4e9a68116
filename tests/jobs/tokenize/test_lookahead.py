"""What is read ahead of need, and what it may hold meanwhile."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from jobs.tokenize.lookahead import Admit, Lookahead


def test_recordings_that_are_ahead_fill_the_memory() -> None:
    held, most, lock = 0, 0, threading.Lock()
    rng = random.Random(0)

    def task(number: int, weight: int) -> Callable[[Admit], tuple[int, int]]:
        def work(admit: Admit) -> tuple[int, int]:
            nonlocal held, most
            admit(weight // 2)
            admit(weight - weight // 2)
            with lock:
                held += weight
                most = max(most, held)
            time.sleep(rng.random() / 1_000)
            return number, weight

        return work

    weights = [rng.choice([1, 5, 10, 60]) for _ in range(200)]
    found = []
    for number, weight in Lookahead(8, tasks=16, weight=50).results(map(task, range(200), weights)):
        with lock:
            held -= weight
        found.append(number)
    assert found == list(range(200))
    assert most <= 50 + 2 * 60  # the first may be more than there is room for, and is given up before it is subtracted


def test_an_error_waits_for_all_that_was_ahead() -> None:
    begun = []

    def tasks() -> Iterator[Callable[[Admit], int]]:
        for number in range(100):

            def work(admit: Admit, number: int = number) -> int:
                begun.append(number)
                admit(10)
                if number == 0:
                    time.sleep(0.05)
                    raise ValueError("broken")
                return number

            yield work

    ahead = Lookahead(2, tasks=16, weight=10)
    with pytest.raises(ValueError, match="broken"):
        list(ahead.results(tasks()))
    assert len(begun) <= 3


def test_nobody_takes_what_is_ahead() -> None:
    results = Lookahead(2, tasks=4, weight=10).results([lambda admit: admit(10)] * 9)
    next(results)
    results.close()
