"""Which task comes next."""

from __future__ import annotations

import random

import pytest

from jobs.crew.isolation import Death
from jobs.crew.schedule import MAX_HALVINGS, MAX_MOVES, MAX_TRIES, Schedule

DEATH = Death(reason="died")


def test_a_failed_task_comes_back_after_the_fresh_ones() -> None:
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


def test_a_task_that_killed_its_worker_waits_until_all_others_are_done() -> None:
    # The worker that replaces the dead one has empty hands; those of the others are full.
    schedule = Schedule(range(100))
    assert [schedule.next(), schedule.next([0])] == [0, 1]
    schedule.lost(0)
    schedule.lost(1)
    assert schedule.next([7]) == 2
    assert schedule.next() == 0
    assert schedule.next([0]) is None
    assert schedule.died(0, DEATH) == 1
    assert schedule.next() == 1


def test_a_task_whose_rows_cannot_be_looked_through_kills_for_ever() -> None:
    schedule = Schedule([0])
    for tries in range(1, MAX_TRIES + 1):
        assert schedule.next() == 0
        assert schedule.died(0, DEATH) == tries
    assert schedule.given_up == {0: "died"}


def test_a_task_is_probed_after_one_death_or_while_it_had_company() -> None:
    schedule = Schedule(range(2), rows=lambda task: 8)
    assert [schedule.next(), schedule.next([0])] == [0, 1]
    schedule.lost(0)
    schedule.lost(1)
    assert schedule.next() == 0
    schedule.died(0, DEATH)
    assert schedule.case(0).probe is None
    assert [schedule.next(), schedule.next()] == [1, 0]
    schedule.died(0, DEATH)
    assert schedule.case(0).probe == (0, 0)
    assert schedule.case(1).probe is None


def test_a_probe_is_taken_for_the_task() -> None:
    schedule = Schedule([0], rows=lambda task: 2)
    probes = []
    finished = False
    while not finished:
        assert schedule.next() == 0
        case = schedule.case(0)
        probes.append(case.probe)
        if case.probe in (None, (1, 2)) and not case.guilty:
            schedule.died(0, DEATH)
        else:
            finished = schedule.done(0)
    assert probes == [None, None, (0, 0), (0, 1), (1, 2), (1, 2), None]
    assert schedule.next() is None
    assert schedule.finished


def test_a_shard_does_not_know_how_often_it_was_handed_out() -> None:
    schedule = Schedule(range(4), rows=lambda task: 2)
    tries = []
    ways_back = [
        lambda: schedule.failed(0, "raised"),
        lambda: schedule.moved(0, "lost with its machine"),
        lambda: schedule.died(0, DEATH),
        lambda: schedule.died(0, DEATH),
        lambda: schedule.done(0),  # a probe
        lambda: schedule.done(0),
    ]
    for way in ways_back:
        while schedule.next() != 0:
            pass
        tries.append(schedule.case(0).tries)
        way()
    assert tries == [1, 2, 3, 4, 5, 6]
    assert schedule.case(1).tries == 1


def test_an_error_during_the_search_ends_it() -> None:
    schedule = Schedule([0], rows=lambda task: 8)
    for _ in range(2):
        schedule.next()
        schedule.died(0, DEATH)
    schedule.next()
    schedule.done(0)
    assert schedule.case(0).probe == (0, 4)
    schedule.next()
    assert schedule.failed(0, "storage is slow") == 1
    assert schedule.next() == 0
    assert schedule.case(0).probe == (0, 4)


def test_a_task_that_starves_its_machine_is_given_up_at_full_size() -> None:
    schedule = Schedule([0], rows=lambda task: 8)
    for halvings in range(MAX_HALVINGS):
        assert schedule.next() == 0
        assert schedule.case(0).halvings == halvings
        schedule.died(0, Death(reason="too little memory", starved=True))
    assert schedule.next() == 0
    assert (schedule.case(0).halvings, schedule.case(0).probe) == (MAX_HALVINGS, None)
    assert schedule.done(0)


def test_a_task_whose_machines_go_away_loses_its_tries_but_moves_for_ever() -> None:
    schedule = Schedule([0])
    for _ in range(MAX_MOVES):
        assert schedule.next() == 0
        schedule.moved(0, "lost with its machine")
    assert schedule.next([7]) == 0  # beside others, as if it were fresh
    schedule.moved(0, "lost with its machine")
    assert schedule.given_up == {0: f"lost with its machine, as {MAX_MOVES} times before"}


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


def test_a_worker_is_made_to_learn_that_nothing_is_left() -> None:
    schedule = Schedule([0], max_tries=1)
    assert schedule.next() == 0
    schedule.failed(0, "raised")
    assert schedule.finished


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
