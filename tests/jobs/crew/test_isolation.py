"""Which rows are found guilty, and after how many deaths."""

from __future__ import annotations

import math
import random

import pytest

from jobs.crew.isolation import CONFIRMATIONS, MAX_FRUITLESS, MAX_GUILTY, Death, Isolation

DEATH = Death(reason="died")


def _search(rows: int, kills: set[int]) -> tuple[Isolation, int, bool]:
    """Plays it through: the isolation, how many died, and whether the whole task was made in the end."""
    isolation, deaths = Isolation(rows), 0
    while not isolation.hopeless:
        made = set(range(*(isolation.probe or (0, rows)))) - set(isolation.guilty)
        if made & kills:
            deaths += 1
            isolation.ended(DEATH)
        elif isolation.probe is None:
            return isolation, deaths, True
        else:
            isolation.ended(None)
    return isolation, deaths, False


def test_one_mishap_in_the_first_probe_gives_the_task_up() -> None:
    isolation = Isolation(4)
    isolation.ended(DEATH)
    assert not isolation.hopeless
    isolation.ended(DEATH)
    assert isolation.hopeless


@pytest.mark.parametrize("rows", [1, 2, 3, 7, 64, 512, 1_000])
@pytest.mark.parametrize("seed", range(20))
def test_an_innocent_row_is_blamed_or_a_guilty_one_is_not(rows: int, seed: int) -> None:
    rng = random.Random(seed)
    kills = set(rng.sample(range(rows), min(rows, 1 + seed % MAX_GUILTY)))
    isolation, deaths, made = _search(rows, kills)
    assert made
    assert set(isolation.guilty) == kills
    # For each row the halvings, its confirmation, and the whole task again.
    assert deaths <= len(kills) * (math.ceil(math.log2(rows)) + CONFIRMATIONS + 1)


def test_a_task_of_many_killers_is_searched_without_end() -> None:
    isolation, deaths, made = _search(512, set(range(0, 512, 3)))
    assert not made
    assert len(isolation.guilty) == MAX_GUILTY
    assert deaths <= MAX_GUILTY * (9 + CONFIRMATIONS + 1)


def test_a_mishap_in_the_search_blames_a_row() -> None:
    isolation = Isolation(64)
    isolation.ended(None)  # reading it alone is harmless
    isolation.ended(DEATH)  # somebody kills the worker of the first half
    while isolation.probe is not None:
        isolation.ended(None)
    assert isolation.guilty == {}
    assert not isolation.hopeless  # the whole task is tried again


def test_a_death_by_chance_over_the_last_row_alone_blames_it() -> None:
    isolation = Isolation(1)
    isolation.ended(None)
    assert isolation.probe == (0, 1)
    isolation.ended(DEATH)
    assert isolation.probe == (0, 1)
    isolation.ended(None)
    assert (isolation.probe, isolation.guilty) == (None, {})


def test_a_task_that_dies_without_a_guilty_row_is_searched_without_end() -> None:
    isolation, whole = Isolation(16), 0
    while not isolation.hopeless:
        whole += isolation.probe is None
        isolation.ended(DEATH if isolation.probe is None else None)
    assert whole == MAX_FRUITLESS
    assert isolation.guilty == {}


def test_the_code_of_a_row_does_not_say_how_its_worker_ended() -> None:
    assert (DEATH.code, Death(reason="", hung=True).code) == ("worker_crashed", "worker_hung")
