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


def test_a_second_task_leaves_enough_for_the_other_workers() -> None:
    schedule = Schedule(range(4))
    assert schedule.next() == 0
    assert schedule.next([0], spare=2) == 1
    assert schedule.next([0, 1], spare=2) is None
    assert not schedule.finished
    assert [schedule.next(), schedule.next(), schedule.next()] == [2, 3, None]


def test_a_task_that_was_lost_in_company_is_tried_alone_and_with_all_its_tries() -> None:
    schedule = Schedule(range(3), max_tries=2)
    assert [schedule.next(), schedule.next([0]), schedule.next()] == [0, 1, 2]
    schedule.lost(0)
    schedule.lost(1)
    assert schedule.next([2]) is None  # not beside another
    assert schedule.next() == 0
    assert schedule.next([0]) is None  # nor another beside it
    assert schedule.failed(0, "died") == 1
    assert schedule.next() == 1
    schedule.done(1)
    assert schedule.next() == 0
    assert schedule.failed(0, "died again") == 2
    assert schedule.given_up == {0: "died again"}
    schedule.done(2)
    assert schedule.next() is None
    assert schedule.finished


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


@pytest.mark.parametrize("seed", range(20))
def test_whoever_dies_with_whatever_in_hand_only_killers_are_given_up(seed: int) -> None:
    rng = random.Random(seed)
    killers = set(rng.sample(range(60), 3))
    schedule = Schedule(range(60))
    hands: list[list[int]] = [[], [], []]
    done: list[int] = []
    turns = 0
    while not schedule.finished:
        turns += 1
        assert turns < 10_000
        hand = rng.choice(hands)
        task = schedule.next(hand, spare=2 if hand else 0) if len(hand) < 3 else None
        if task is not None:
            hand.append(task)
        elif hand and not killers.isdisjoint(hand):
            for lost in hand:
                if len(hand) > 1:
                    schedule.lost(lost)
                else:
                    schedule.failed(lost, "died")
            hand.clear()
        elif hand:
            finished = hand.pop(rng.randrange(len(hand)))
            schedule.done(finished)
            done.append(finished)
    assert set(schedule.given_up) == killers
    assert sorted([*done, *killers]) == list(range(60))
