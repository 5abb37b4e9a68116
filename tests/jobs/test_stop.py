"""Signals while a run is under way: what waits, what unwinds, and what ends in any case."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import click
import pytest

from jobs.command import Context, command
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


@pytest.fixture(autouse=True)
def left(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Filled when a run's time is over, in the place of the end of this process."""
    gone: list[str] = []
    monkeypatch.setattr("jobs.stop._leave", lambda: gone.append("at once"))
    return gone


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


def test_a_closed_terminal_leaves_the_lease_behind() -> None:
    stop = Stop()
    with stop.listening():
        with stop.graceful():
            os.kill(os.getpid(), signal.SIGHUP)
            assert stop.signal == "SIGHUP"
            os.kill(os.getpid(), signal.SIGHUP)  # to a shell's jobs it comes from the shell and from the system
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGHUP)


def test_a_run_under_nohup_ends_with_its_terminal() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        stop = Stop()
        with stop.listening():
            os.kill(os.getpid(), signal.SIGHUP)
        assert not stop.requested
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_command_that_is_ended_leaves_its_temporary_files(
    number: signal.Signals, capsys: pytest.CaptureFixture[str]
) -> None:
    undone: list[str] = []

    @click.command()
    @command
    def work(context: Context) -> int:
        try:
            os.kill(os.getpid(), number)
        finally:
            undone.append("all")
        return 0

    with pytest.raises(SystemExit) as ended:
        work.main([])
    assert (ended.value.code, undone) == (1, ["all"])
    assert capsys.readouterr().err.startswith("error: stopped before it had finished")


def test_a_run_that_hangs_on_its_way_out_stays_for_ever() -> None:
    ended = subprocess.run([sys.executable, "-c", HANGING], capture_output=True, text=True, timeout=120)
    assert ended.returncode == 1
    assert "0.5 s after the signal to stop: leaving at once" in ended.stderr


def test_a_run_that_ended_in_time_is_ended_again(left: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jobs.stop.LEAVE_SECONDS", 3_600.0)
    stop = Stop()
    with stop.listening(), stop.graceful():
        os.kill(os.getpid(), signal.SIGTERM)
        waiting = stop._last_resort
        assert waiting is not None
        assert waiting.is_alive()
    waiting.join(60)  # what was called off ends at once; what was forgotten, in an hour
    assert not waiting.is_alive()
    assert left == []
