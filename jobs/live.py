"""How a run shows itself while it works: a view of it and its workers on a terminal, now and then a line elsewhere."""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence

from rich.console import Console, Group, RenderableType
from rich.constrain import Constrain
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from jobs.crew.sight import STATES, Sight
from jobs.progress import Meter, clock_time, listed, say

LINE_SECONDS = 5.0  # between two lines where there is no terminal
DRAW_SECONDS = 0.5  # between two drawings on a terminal
MOST_WORKERS = 20  # with a line of their own
LEAST_WORKERS = 2  # lines: of one, a line would say how many more there are, and nothing of any
WIDEST = 100  # columns of their table
OTHER_LINES = 9  # of the view, beside the workers'

# To be called after each change of the meter, and now and then with the workers as they are.
Changed = Callable[..., None]


@contextlib.contextmanager
def showing(meter: Meter, console: Console) -> Iterator[Changed]:
    """Shows a run during the block.

    What is yielded is to be called after each change of the meter, without arguments, and about once a second with the
    workers as they are, if there are any.
    """
    if not can_redraw(console):
        yield _Lines(meter, console).changed
        return
    view = _View(meter, console)
    with view.live:
        yield view.changed


def can_redraw(console: Console) -> bool:
    """Whether what was shown can be drawn over."""
    return console.is_terminal and not console.is_dumb_terminal


class _Lines:
    def __init__(self, meter: Meter, console: Console) -> None:
        self._meter, self._console = meter, console
        self._said, self._rows = meter.clock() - LINE_SECONDS, -1

    def changed(self, workers: Sequence[Sight] = ()) -> None:
        now = self._meter.clock()
        if self._meter.rows != self._rows and now - self._said >= LINE_SECONDS:
            self._said, self._rows = now, self._meter.rows
            say(self._console, self._meter.text())


class _View:
    def __init__(self, meter: Meter, console: Console) -> None:
        self._meter, self._console = meter, console
        self._workers: Sequence[Sight] = ()
        self._drawn = time.monotonic()
        # It draws when it is told, on the caller's thread, which alone changes the meter.
        self.live = Live(self._drawing(), console=console, auto_refresh=False, transient=True)

    def changed(self, workers: Sequence[Sight] | None = None) -> None:
        if workers is not None:
            self._workers = workers
        now = time.monotonic()
        if now - self._drawn >= DRAW_SECONDS:
            self._drawn = now
            self.live.update(self._drawing(), refresh=True)

    def _drawing(self) -> RenderableType:
        room = min(MOST_WORKERS, self._console.height - OTHER_LINES)
        workers = [worker_table(self._workers, self._meter, room)] if self._workers and room >= LEAST_WORKERS else []
        return Group(summary(self._meter), *workers)


def summary(meter: Meter) -> RenderableType:
    """A run in a few lines."""
    lines = Table.grid(padding=(0, 2))
    lines.add_column(no_wrap=True)
    lines.add_column(overflow="fold")
    head = Table.grid(padding=(0, 2))
    head.add_row(
        Text(f"{meter.rows_seen}/{meter.rows_total}"),
        ProgressBar(max(meter.rows_total, 1), meter.rows_seen, width=20),
        Text(f"{meter.progress:.0%}"),
        Text(_times(meter)),
    )
    lines.add_row(Text(meter.unit), head)
    lines.add_row(
        Text("audio"), Text(f"{clock_time(meter.audio_seconds)} in this run, {meter.speed:.1f} x real time of late")
    )
    if meter.positions:
        lines.add_row(Text("padding"), Text(f"{meter.padding_share:.1%} of what the vocoder computes"))
    if meter.failed:
        reasons = f": {listed(meter.errors)}" if meter.errors else ""
        lines.add_row(Text("failed"), Text(f"{meter.failed}{reasons}", "red"))
    if meter.problems:
        lines.add_row(Text("suspect"), Text(f"kept, but not past a check: {listed(meter.problems)}"))
    if meter.retries:
        lines.add_row(Text("retries"), Text(str(meter.retries)))
    return lines


def _times(meter: Meter) -> str:
    eta = meter.eta_seconds
    left = "waiting for the first" if eta is None else f"ETA {clock_time(eta)}"
    return f"{clock_time(meter.seconds)}, {left}"


def worker_table(workers: Sequence[Sight], meter: Meter, most: int = MOST_WORKERS) -> RenderableType:
    """A line for each worker, those first that need a look; of many, the rest in one line.

    Args:
        meter: knows what each has made.
        most: lines.
    """
    table = Table(box=None, padding=(0, 2, 0, 0), show_edge=False, expand=True)
    table.add_column("host", no_wrap=True, ratio=1)
    for name in ("pid", "gpu", "state", "for", "shards", "tries"):
        table.add_column(name, no_wrap=True)
    table.add_column("x real time", justify="right", no_wrap=True)
    shown = workers if len(workers) <= most else sorted(workers, key=_urgency)[: most - 1]
    for worker in shown:
        table.add_row(*map(Text, _cells(worker, meter)), style="red" if worker.state == "lost" else None)
    lines = Constrain(table, WIDEST)
    if len(shown) == len(workers):
        return lines
    rest = Counter(worker.state for worker in sorted(workers, key=_urgency)[most - 1 :])
    counted = ", ".join(f"{rest[state]} {state}" for state in STATES if rest[state])
    return Group(lines, Text(f"and {len(workers) - len(shown)} more: {counted}"))


def _cells(worker: Sight, meter: Meter) -> tuple[str, ...]:
    held = sorted(worker.held, key=lambda each: -each.seconds)
    ready = worker.state in ("idle", "at work")
    speed = meter.by_worker.get(worker.name, 0.0) / worker.seconds if ready and worker.seconds else 0.0
    host, _, pid = worker.name.rpartition(":")
    return (
        host or "-",
        pid or "-",
        ",".join(worker.gpus) or "-",
        worker.state,
        clock_time(held[0].seconds if held and ready else worker.seconds),
        ", ".join(str(each.task) for each in held) or "-",
        str(max((each.tries for each in held), default=0) or "-"),
        f"{speed:.1f}" if speed else "-",
    )


def _urgency(worker: Sight) -> tuple[bool, int, float]:
    """Lost, then those whose shards were tried most often, then those that have one in hand for longest."""
    tries = max((each.tries for each in worker.held), default=0)
    return worker.state != "lost", -tries, -max((each.seconds for each in worker.held), default=0.0)
