"""Which trouble is waited out, for how long, and what is said of it. The clock is the test's."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from botocore.exceptions import (
    ClientError,
    ConnectionClosedError,
    ConnectTimeoutError,
    EndpointConnectionError,
    ReadTimeoutError,
)

from jobs.storage import patience
from jobs.storage.faults import Doubtful, passes, surely_failed, translated, unreached
from jobs.storage.patience import Patience, trust_addresses


@dataclass
class Clock:
    """Time that passes when somebody sleeps."""

    now: float = 100.0
    waits: list[float] = field(default_factory=list)

    def sleep(self, seconds: float) -> None:
        self.waits.append(seconds)
        self.now += seconds

    def patience(self, *, known: bool = True, chance: Callable[[], float] = lambda: 1.0, **times: float) -> Patience:
        reached = {"s3://bucket"} if known else set()
        return Patience(clock=lambda: self.now, sleep=self.sleep, chance=chance, reached=reached, **times)


def answer(status: int, code: str = "") -> ClientError:
    parts = {"Error": {"Code": code or str(status), "Message": "m"}, "ResponseMetadata": {"HTTPStatusCode": status}}
    return ClientError(parts, "PutObject")


def refused() -> EndpointConnectionError:
    return EndpointConnectionError(endpoint_url="http://x", error=ConnectionRefusedError(111, "refused"))


def broken() -> EndpointConnectionError:
    return EndpointConnectionError(endpoint_url="http://x", error=ConnectionResetError(104, "reset by peer"))


def repeat(patience: Patience, outcomes: Iterator[Any], **kw: Any) -> Any:
    def request() -> Any:
        outcome = next(outcomes)
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome

    given = {"store": "s3://bucket", "what": "write s3://bucket/a", "hidden": []} | kw
    return patience.repeat(request, **given)


@pytest.mark.parametrize(
    "error",
    [
        *(answer(status) for status in (429, 500, 502, 503, 504)),
        answer(400, "RequestTimeout"),
        answer(503, "SlowDown"),
        refused(),
        broken(),
        ReadTimeoutError(endpoint_url="http://x"),
        ConnectTimeoutError(endpoint_url="http://x"),
        ConnectionClosedError(endpoint_url="http://x"),
        ConnectionResetError(104, "reset by peer"),
        TimeoutError(),
    ],
    ids=repr,
)
def test_trouble_that_passes_is_waited_out(error: Exception) -> None:
    clock = Clock()
    assert repeat(clock.patience(), iter([error, error, "made"])) == "made"
    assert clock.waits == [0.5, 1.0]


@pytest.mark.parametrize(
    "error",
    [
        *(answer(status) for status in (400, 403, 404, 412)),
        answer(501),
        PermissionError("no"),
        FileNotFoundError("none"),
        ValueError("not a name"),
        TypeError("no such option"),
        KeyError("x"),
    ],
    ids=repr,
)
def test_what_will_not_pass_is_asked_once(error: Exception) -> None:
    clock = Clock()
    with pytest.raises(type(error)):
        repeat(clock.patience(), iter([error]))
    assert clock.waits == []


def test_waits_grow_to_a_bound_and_end_after_minutes() -> None:
    clock = Clock()
    with pytest.raises(ClientError) as caught:
        repeat(clock.patience(), iter(lambda: answer(503), None))
    assert clock.waits[:7] == [0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0]
    assert max(clock.waits) == 30.0
    assert clock.now - 100.0 == 300.0
    assert f"{len(clock.waits) + 1} tries in 300 s" in str(translated("cannot", caught.value, [], uncertain=False))


def test_workers_that_were_told_to_slow_down_do_not_come_back_together() -> None:
    seen: set[float] = set()
    for seed in range(50):
        clock = Clock()
        repeat(clock.patience(chance=random.Random(seed).random), iter([answer(503)] * 6 + ["made"]))
        seen.update(clock.waits)
        assert all(0 <= wait <= 0.5 * 2**number for number, wait in enumerate(clock.waits))
    assert len(seen) == 300


@pytest.mark.parametrize("error", [refused(), ConnectTimeoutError(endpoint_url="http://x")], ids=repr)
def test_a_wrong_address_is_not_asked_for_minutes(error: Exception) -> None:
    clock = Clock()
    with pytest.raises(type(error)) as caught:
        repeat(clock.patience(known=False), iter(lambda: error, None))
    assert clock.now - 100.0 <= 10.0
    assert "check the address" in str(translated("cannot read s3://bucket", caught.value, [], uncertain=False))


@pytest.mark.parametrize("first", ["an answer", answer(404), answer(503)], ids=repr)
def test_a_store_that_has_answered_once_is_waited_for(first: Any) -> None:
    clock = Clock()
    patience = clock.patience(known=False)
    if isinstance(first, str):
        repeat(patience, iter([first]))
    elif first.response["ResponseMetadata"]["HTTPStatusCode"] == 404:
        with pytest.raises(ClientError):
            repeat(patience, iter([first]))
    else:
        repeat(patience, iter([first, "made"]))
    assert repeat(patience, iter([refused()] * 12 + ["made"])) == "made"
    assert clock.now - 100.0 > 150.0


def test_a_worker_sent_into_an_outage_waits_for_it_to_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience, "_REACHED", set())
    clock = Clock()
    trust_addresses()
    given = Patience(clock=lambda: clock.now, sleep=clock.sleep, chance=lambda: 1.0)
    assert repeat(given, iter([refused()] * 12 + ["made"])) == "made"


def test_a_short_patience_ends_soon_with_a_store_that_is_known_or_not() -> None:
    for known in (True, False):
        clock = Clock()
        with pytest.raises(ClientError):
            repeat(clock.patience(known=known, total=4.0), iter(lambda: answer(503), None))
        assert clock.now - 100.0 == 4.0


def test_a_write_refused_after_a_lost_answer_is_not_said_to_have_surely_failed() -> None:
    clock = Clock()
    with pytest.raises(Doubtful) as caught:
        repeat(clock.patience(), iter([broken(), answer(403)]), writing=True)
    assert not surely_failed(caught.value)
    with pytest.raises(ClientError) as sure:
        repeat(clock.patience(known=False), iter([refused(), answer(403)]), writing=True)
    assert surely_failed(sure.value)
    with pytest.raises(ClientError):
        repeat(clock.patience(), iter([broken(), answer(403)]))


def test_a_write_to_a_store_that_went_away_may_have_landed_before_the_first_refusal() -> None:
    """What answers "refused" may be a second try that the HTTP library made by itself, after the first was lost."""
    clock = Clock()
    with pytest.raises(Doubtful):
        repeat(clock.patience(), (refused() for _ in range(1_000)), writing=True)
    with pytest.raises(EndpointConnectionError):
        repeat(clock.patience(known=False), (refused() for _ in range(1_000)), writing=True)


def test_a_connection_that_broke_under_way_is_not_taken_for_one_that_never_was() -> None:
    assert unreached(refused())
    assert surely_failed(refused())
    assert not unreached(broken())
    assert not surely_failed(broken())
    assert passes(broken())


def test_long_trouble_is_told_once_and_without_secrets(caplog: pytest.LogCaptureFixture) -> None:
    clock = Clock()
    error = OSError(104, "reset, and the key was hunter22")
    repeat(clock.patience(), iter([error] * 9 + ["made"]), hidden=["hunter22"])
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "cannot write s3://bucket/a for 16 s now, trying up to 300 s: [Errno 104] reset" in record.message
    assert "hunter22" not in record.message
    caplog.clear()
    repeat(Clock().patience(), iter([error] * 4 + ["made"]))
    assert not caplog.records


def test_control_c_is_not_waited_out() -> None:
    clock = Clock()
    with pytest.raises(KeyboardInterrupt):
        repeat(clock.patience(), iter([answer(503), KeyboardInterrupt()]))
    assert len(clock.waits) == 1
