"""Connecting to Ray, as far as it can be said without one."""

from __future__ import annotations

from typing import Any, NoReturn

import pytest
import ray
from ray.exceptions import RayError

from jobs.crew.session import connected
from jobs.errors import InputError


@pytest.fixture(name="without_ray", autouse=True)
def _without_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "is_initialized", lambda: False)


@pytest.mark.parametrize("address", ["ray://head:10001", "head", ":6379", "head:port"])
def test_an_address_of_another_kind_is_tried_for_minutes(address: str) -> None:
    with (
        pytest.raises(InputError, match=r"is not the address of a cluster's head; give its host:port"),
        connected(address),
    ):
        raise AssertionError("connected")


def test_nothing_listens_at_an_address() -> None:
    with pytest.raises(InputError, match=r"no Ray cluster answers at 127\.0\.0\.1:1: "), connected("127.0.0.1:1"):
        raise AssertionError("connected")


@pytest.mark.parametrize("error", [RayError("this cluster asks for a token"), ConnectionError("refused")])
def test_a_cluster_that_turns_this_process_away_ends_as_a_mystery(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def init(**_: Any) -> NoReturn:
        raise error

    monkeypatch.setattr(ray, "init", init)
    with pytest.raises(InputError, match=str(error)), connected("auto"):
        raise AssertionError("connected")
