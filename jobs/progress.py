"""What a run has done so far, in numbers and in words, and the console's lines."""

from __future__ import annotations

import logging
import re
import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING

from rich.console import Console
from rich.text import Text

from s3gen.constants import SAMPLE_RATE

if TYPE_CHECKING:
    from jobs.ledger.records import ShardReport

RECENT_SECONDS = 600.0  # of which speed and the time left are told
MARK_SECONDS, LEAST_MARKS = 10.0, 30  # between two marks of that time; as many, where shards take long
SHOWN_REASONS = 6  # in a list of them
LINE_REASONS = 3  # in a line that says other things too
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")  # of characters, all but the tabulator and the line's end


@dataclass(slots=True)
class Meter:
    """Counts what a run does.

    Attributes:
        rows_total: of the job.
        rows_before: that earlier runs committed.
        unit: what a row is called.
        errors: rows that failed, by code.
        problems: rows that were made and do not pass a check, by its name.
        retries: how often shards that are done were handed out again.
        positions: frames that the vocoder was given, padding included.
        by_worker: seconds of audio that each has made, by its name.
    """

    rows_total: int
    rows_before: int = 0
    unit: str = "rows"
    clock: Callable[[], float] = time.monotonic
    rows: int = 0  # of this run, those that failed included
    failed: int = 0
    audio_seconds: float = 0.0  # of this run
    errors: Counter[str] = field(default_factory=Counter)
    problems: Counter[str] = field(default_factory=Counter)
    retries: int = 0
    positions: int = 0
    padding: int = 0
    by_worker: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    started: float = field(init=False)
    _marks: deque[tuple[float, int, float]] = field(init=False)  # when, and the rows and seconds of audio by then

    def __post_init__(self) -> None:
        self.started = self.clock()
        self._marks = deque([(self.started, 0, 0.0)])

    def add(self, *, done: int, failed: int, audio_seconds: float) -> None:
        """Some rows more."""
        self.rows += done + failed
        self.failed += failed
        self.audio_seconds += audio_seconds
        now = self.clock()
        if now - self._marks[-1][0] >= MARK_SECONDS:
            self._marks.append((now, self.rows, self.audio_seconds))
        while len(self._marks) > LEAST_MARKS and now - self._marks[0][0] > RECENT_SECONDS:
            self._marks.popleft()

    def take(self, report: ShardReport) -> None:
        """One shard more."""
        seconds = report.samples / SAMPLE_RATE
        if not self.rows:  # until this one was begun, workers were made
            self._marks[0] = (self.clock() - sum(report.seconds.values()), 0, 0.0)
        self.add(done=report.rows_done, failed=report.rows_failed, audio_seconds=seconds)
        self.errors.update(report.errors)
        self.problems.update(report.problems)
        self.retries += report.tries - 1
        self.positions += report.positions
        self.padding += report.padding
        self.by_worker[report.worker] += seconds

    @property
    def rows_seen(self) -> int:
        """Of the job, by now."""
        return self.rows_before + self.rows

    @property
    def progress(self) -> float:
        """Of the job's rows: 0 to 1."""
        return self.rows_seen / self.rows_total if self.rows_total else 1.0

    @property
    def seconds(self) -> float:
        """Since the run began."""
        return self.clock() - self.started

    @property
    def speed(self) -> float:
        """Seconds of audio per second of late: as workers come and go, it changes."""
        when, _, audio_seconds = self._marks[0]
        return (self.audio_seconds - audio_seconds) / max(self.clock() - when, 1e-9)

    @property
    def eta_seconds(self) -> float | None:
        """Until the last row, at the rate of late; None before the first shard."""
        when, rows, _ = self._marks[0]
        if self.rows == rows:
            return None
        return (self.clock() - when) / (self.rows - rows) * (self.rows_total - self.rows_seen)

    @property
    def padding_share(self) -> float:
        """Of what the vocoder was given: 0 to 1."""
        return self.padding / self.positions if self.positions else 0.0

    def text(self) -> str:
        """Rows, failures, audio, speed, padding, time left."""
        rows = f"{self.rows_seen}/{self.rows_total} {self.unit}{self._failed_text()}"
        if self.eta_seconds is None:
            return f"{rows}, waiting for the first"
        audio, eta = clock_time(self.audio_seconds), clock_time(self.eta_seconds)
        padding = f", {self.padding_share:.0%} padding" if self.positions else ""
        return f"{rows}, {audio} of audio, {self.speed:.1f} x real time{padding}, ETA {eta}"

    def _failed_text(self) -> str:
        if not self.failed:
            return ""
        reasons = f" ({listed(self.errors, LINE_REASONS)})" if self.errors else ""
        return f", {self.failed} failed{reasons}"


def listed(found: Mapping[str, int], most: int = SHOWN_REASONS) -> str:
    """``silence 9, dc 2 and 3 more kinds``: the most frequent first.

    Args:
        found: how often, by name.
        most: how many names are shown.
    """
    names = sorted(found, key=lambda name: (-found[name], name))
    more = f" and {len(names) - most} more kinds" if len(names) > most else ""
    return ", ".join(f"{name} {found[name]}" for name in names[:most]) + more


def clock_time(seconds: float) -> str:
    """`1:02:03`, or `4 days, 1:02:03`."""
    return str(timedelta(seconds=round(seconds)))


def tame(text: str) -> str:
    """A text without what would command a terminal, which names of files and rows may hold: that is written out."""
    return CONTROL.sub(lambda found: f"\\x{ord(found[0]):02x}", text)


def say(console: Console, text: str) -> None:
    """Prints a line as it is: no wrapping, no markup, above a bar if there is one."""
    console.print(Text(tame(text)), soft_wrap=True)


class ConsoleHandler(logging.Handler):
    """Log records as lines of the console that also shows the progress."""

    def __init__(self, console: Console) -> None:
        super().__init__()
        self._console = console

    def emit(self, record: logging.LogRecord) -> None:
        """Prints one record; warnings and worse say so."""
        level = "" if record.levelno < logging.WARNING else f"{record.levelname.lower()}: "
        say(self._console, f"{level}{record.getMessage()}")
