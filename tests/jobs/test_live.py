"""What a run shows on a terminal, and where there is none."""

from __future__ import annotations

import io
import logging
from collections.abc import Callable

import pytest
from rich.console import Console

from jobs import live
from jobs.crew.sight import Held, Sight
from jobs.live import showing, worker_table
from jobs.progress import ConsoleHandler, Meter
from tests.jobs.reports import Clock, report


@pytest.fixture
def clock() -> Clock:
    return Clock()


def _drawn(draw: Callable[[Console], object], width: int = 100) -> list[str]:
    console = Console(file=io.StringIO(), width=width, record=True)
    draw(console)
    return console.export_text().splitlines()


def test_a_log_file_gets_a_line_now_and_then_and_not_one_per_shard(clock: Clock) -> None:
    stream = io.StringIO()
    meter = Meter(rows_total=1000, clock=clock)
    with showing(meter, Console(file=stream, width=20)) as changed:
        for _ in range(100):
            clock.now += 0.5
            meter.add(done=10, failed=0, audio_seconds=1.0)
            changed()
    lines = stream.getvalue().splitlines()
    assert 9 <= len(lines) <= 11
    assert all("rows" in line and "ETA" in line for line in lines)  # none is wrapped at the width


def test_a_terminal_gets_a_view_that_log_lines_do_not_tear(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(live, "DRAW_SECONDS", 0.0)
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=True, width=120)
    record = logging.LogRecord("jobs", logging.WARNING, "", 0, "a worker died [3/4]", None, None)
    with showing(Meter(rows_total=10, clock=clock), console) as changed:
        changed([Sight(name="here:7", gpus=["1"], state="starting", seconds=3)])
        ConsoleHandler(console).emit(record)
    assert "warning: a worker died [3/4]" in stream.getvalue()
    assert "0/10" in stream.getvalue()
    assert "starting" in stream.getvalue()
    # It begins again below the line, and is gone at the end.
    assert "0/10" in stream.getvalue().partition("[3/4]")[2]
    assert stream.getvalue().endswith("\x1b[2K")


def test_a_terminal_that_cannot_draw_shows_nothing(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "dumb")
    stream = io.StringIO()
    with showing(Meter(rows_total=10, clock=clock), Console(file=stream, force_terminal=True)) as changed:
        changed()
    assert "0/10 rows" in stream.getvalue()


def test_a_run_that_waits_fills_a_log_file_with_the_same_line(clock: Clock) -> None:
    stream = io.StringIO()
    with showing(Meter(rows_total=10, clock=clock), Console(file=stream)) as changed:
        for _ in range(100):
            clock.now += 1
            changed([Sight(name="", gpus=(), state="waiting", seconds=1)])
    assert stream.getvalue().splitlines() == ["0/10 rows, waiting for the first"]


def test_the_view_hides_what_went_wrong(clock: Clock) -> None:
    meter = Meter(rows_total=10, clock=clock)
    clock.now += 10
    meter.take(report(rows_failed=2, errors={"too_long": 2}, problems={"silence": 1}, padding=25, tries=2))
    text = "\n".join(_drawn(lambda console: console.print(live.summary(meter))))
    for part in ("3/10", "30%", "ETA 0:00:23", "1.0 x real time", "25.0%", "2: too_long 2", "silence 1", "retries  1"):
        assert part in text


def test_a_worker_line_does_not_say_where_it_is_and_what_it_does(clock: Clock) -> None:
    meter = Meter(rows_total=10, clock=clock)
    meter.take(report(worker="node-a.local:71"))
    busy = Sight(name="node-a.local:71", gpus=["2"], state="at work", seconds=4, held=[Held(8, 1, 1), Held(5, 3, 61)])
    loading = Sight(name="node-b.local:72", gpus=[], state="starting", seconds=9)
    _, first, second, third = _drawn(
        lambda console: console.print(
            worker_table([busy, loading, Sight(name="", gpus=(), state="waiting", seconds=2)], meter)
        )
    )
    assert first.split() == ["node-a.local", "71", "2", "at", "work", "0:01:01", "5,", "8", "3", "2.5"]
    assert second.split() == ["node-b.local", "72", "-", "starting", "0:00:09", "-", "-", "-"]
    assert third.split() == ["-", "-", "-", "waiting", "0:00:02", "-", "-", "-"]


@pytest.mark.parametrize("width", [80, 200])
def test_a_long_host_name_pushes_the_numbers_off_the_screen(width: int, clock: Clock) -> None:
    name = "a-pod-with-a-very-long-name-of-a-deployment-6f7d8c9b5d-x2x4z.cluster.local:123456"
    worker = Sight(name=name, gpus=["0"], state="at work", seconds=4, held=[Held(123_456, 1, 3)])
    _, line = _drawn(lambda console: console.print(worker_table([worker], Meter(1, clock=clock))), width)
    assert len(line) <= min(width, live.WIDEST)
    assert line.split()[1:] == ["123456", "0", "at", "work", "0:00:03", "123456", "1", "-"]


@pytest.mark.parametrize(("height", "shown"), [(7, False), (10, False), (11, True)])
def test_a_small_terminal_shows_headings_and_no_worker(
    height: int, shown: bool, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(live, "DRAW_SECONDS", 0.0)
    stream = io.StringIO()
    workers = [Sight(name=f"here:{pid}", gpus=(), state="idle", seconds=3) for pid in (71, 72)]
    console = Console(file=stream, force_terminal=True, width=80, height=height)
    with showing(Meter(rows_total=10, clock=clock), console) as changed:
        changed(workers)
    assert "0/10" in stream.getvalue()
    assert [word in stream.getvalue() for word in ("host", "here")] == [shown, shown]


def test_a_thousand_workers_scroll_those_in_trouble_away(clock: Clock) -> None:
    workers = [
        Sight(name=f"n:{pid}", gpus=(), state="at work", seconds=9, held=[Held(pid, 1 + (pid == 700), pid)])
        for pid in range(1_000)
    ]
    workers.append(Sight(name="n:5000", gpus=(), state="lost", seconds=9))
    workers.append(Sight(name="n:5001", gpus=(), state="starting", seconds=9))
    _, *lines, rest = _drawn(lambda console: console.print(worker_table(workers, Meter(1, clock=clock), 5)))
    assert [line.split()[1] for line in lines] == ["5000", "700", "999", "998"]
    assert rest == "and 998 more: 1 starting, 997 at work"
