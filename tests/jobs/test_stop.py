"""Signals while a run is under way: what waits, what unwinds, and what ends in any case."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

from jobs.stop import Stop

HANGING = """
import os, signal, time
from jobs import stop
stop.LEAVE_SECONDS = 0.5
with stop.Stop().listening() as asked:
    try:
        with asked.graceful():
            os.kill(os.getpid(), signal.SIGTERM)
            assert asked.requested
    finally:
        while True:  # a store that never answers
            time.sleep(1)
"""


def test_ctrl_c_lets_the_shard_in_hand_end_and_twice_does_not() -> None:
    stop = Stop()
    with stop.listening():
        with stop.graceful():
            os.kill(os.getpid(), signal.SIGINT)
            assert stop.requested
            os.kill(os.getpid(), signal.SIGTERM)
            with pytest.raises(KeyboardInterrupt):
                os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGTERM)


def test_a_run_that_hangs_on_its_way_out_stays_for_ever() -> None:
    began = time.monotonic()
    ended = subprocess.run([sys.executable, "-c", HANGING], capture_output=True, text=True, timeout=30)
    assert ended.returncode == 1
    assert "0.5 s after the signal to stop: leaving at once" in ended.stderr
    assert time.monotonic() - began < 10


def test_a_run_that_ended_in_time_is_ended_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jobs.stop.LEAVE_SECONDS", 0.2)
    stop = Stop()
    with stop.listening(), stop.graceful():
        os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(0.4)  # or this process ends here
