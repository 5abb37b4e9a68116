"""Which task comes next."""

from __future__ import annotations

import random

import pytest

from jobs.schedule import MAX_TRIES, Schedule


def test_a_lost_task_comes_back_after_the_fresh_ones() -> None:
    schedule = Schedule(range(3))
    assert [schedule.next(), schedule.next()] == [0, 1]
    assert schedule.failed(0, "died") == 1
    schedule.done(1)
    assert [schedule.next(), schedule.next(), schedule.next()] == [2, 0, None]
    assert not schedule.finished
    schedule.done(2)
    schedule.done(0)
    assert schedule.next() is None
    assert schedule.finished
    assert schedule.given_up == {}


def test_a_poison_task_is_given_up_and_does_not_stop_the_others() -> None:
    schedule = Schedule(range(5))
    done = []
    while (task := schedule.next()) is not None:
        if task == 2:
            schedule.failed(task, "boom")
        else:
            schedule.done(task)
            done.append(task)
    assert schedule.finished
    assert sorted(done) == [0, 1, 3, 4]
    assert schedule.given_up == {2: "boom"}


def test_a_task_that_was_handed_back_twice_and_then_done_is_forgiven() -> None:
    schedule = Schedule([7])
    for _ in range(MAX_TRIES - 1):
        assert schedule.next() == 7
        schedule.failed(7, "died")
    assert schedule.next() == 7
    schedule.done(7)
    assert schedule.next() is None
    assert schedule.finished
    assert not schedule.given_up


def test_a_report_for_a_task_that_is_not_in_hand_is_an_error() -> None:
    schedule = Schedule([1])
    with pytest.raises(KeyError):
        schedule.done(1)


@pytest.mark.parametrize("seed", range(20))
def test_whatever_dies_when_no_task_is_lost_or_doubled(seed: int) -> None:
    rng = random.Random(seed)
    schedule = Schedule(range(100))
    in_hand: list[int] = []
    done: list[int] = []
    while not schedule.finished:
        task = schedule.next() if len(in_hand) < 8 else None
        if task is not None:
            assert task not in in_hand
            in_hand.append(task)
        elif in_hand:
            chosen = in_hand.pop(rng.randrange(len(in_hand)))
            if rng.random() < 0.2:
                schedule.failed(chosen, "died")
            else:
                schedule.done(chosen)
                done.append(chosen)
        assert schedule.in_hand == len(in_hand)
    assert sorted([*done, *schedule.given_up]) == list(range(100))
