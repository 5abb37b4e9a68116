"""How a run shows itself while it works: a bar on a terminal, now and then a line everywhere else."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import timedelta

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task
from rich.table import Column
from rich.text import Text

LINE_SECONDS = 5.0  # between two lines where there is no terminal
BAR_COLUMNS = 10  # of a terminal's 80, of which the numbers need the rest


@dataclass(slots=True)
class Meter:
    """The counts of a run, and what follows from them.

    Attributes:
        rows_total: of the job.
        rows_before: that earlier runs committed.
        unit: what a row is called.
    """

    rows_total: int
    rows_before: int = 0
    unit: str = "rows"
    clock: Callable[[], float] = time.monotonic
    rows: int = 0  # of this run, those that failed included
    failed: int = 0
    audio_seconds: float = 0.0  # of this run
    started: float = field(init=False)

    def __post_init__(self) -> None:
        self.started = self.clock()

    def add(self, *, done: int, failed: int, audio_seconds: float) -> None:
        """One shard, or part, more."""
        self.rows += done + failed
        self.failed += failed
        self.audio_seconds += audio_seconds

    @property
    def rows_seen(self) -> int:
        """Of the job, by now."""
        return self.rows_before + self.rows

    @property
    def speed(self) -> float:
        """Seconds of audio per second, of this run."""
        return self.audio_seconds / max(self.clock() - self.started, 1e-9)

    @property
    def eta_seconds(self) -> float | None:
        """Until the last row, at the rate of this run; None before the first shard."""
        if not self.rows:
            return None
        return (self.clock() - self.started) / self.rows * (self.rows_total - self.rows_seen)

    def text(self) -> str:
        """Rows, audio, speed, time left."""
        failed = f", {self.failed} failed" if self.failed else ""
        rows = f"{self.rows_seen}/{self.rows_total} {self.unit}{failed}"
        if self.eta_seconds is None:
            return f"{rows}, waiting for the first"
        audio, eta = clock_time(self.audio_seconds), clock_time(self.eta_seconds)
        return f"{rows}, {audio} audio, {self.speed:.1f} x real time, ETA {eta}"


def clock_time(seconds: float) -> str:
    """`1:02:03`, or `4 days, 1:02:03`."""
    return str(timedelta(seconds=round(seconds)))


@contextlib.contextmanager
def showing(meter: Meter, console: Console) -> Iterator[Callable[[], None]]:
    """Shows the meter during the block; what is yielded is to be called after each change."""
    if not console.is_terminal:
        yield _Lines(meter, console).changed
        return
    with Progress(BarColumn(BAR_COLUMNS), _MeterColumn(meter), console=console, transient=True) as bar:
        task = bar.add_task("", total=meter.rows_total, completed=meter.rows_seen)
        yield lambda: bar.update(task, completed=meter.rows_seen)


class _Lines:
    def __init__(self, meter: Meter, console: Console) -> None:
        self._meter, self._console = meter, console
        self._said = meter.clock() - LINE_SECONDS

    def changed(self) -> None:
        now = self._meter.clock()
        if now - self._said >= LINE_SECONDS:
            self._said = now
            say(self._console, self._meter.text())


class _MeterColumn(ProgressColumn):
    def __init__(self, meter: Meter) -> None:
        super().__init__(Column(no_wrap=True))
        self._meter = meter

    def render(self, task: Task) -> Text:
        return Text(self._meter.text())


def say(console: Console, text: str) -> None:
    """Prints a line as it is: no wrapping, no markup, above a bar if there is one."""
    console.print(Text(text), soft_wrap=True)


class ConsoleHandler(logging.Handler):
    """Log records as lines of the console that also shows the progress."""

    def __init__(self, console: Console) -> None:
        super().__init__()
        self._console = console

    def emit(self, record: logging.LogRecord) -> None:
        """Prints one record; warnings and worse say so."""
        level = "" if record.levelno < logging.WARNING else f"{record.levelname.lower()}: "
        say(self._console, f"{level}{record.getMessage()}")
