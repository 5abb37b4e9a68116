"""Which rows of one task kill the workers that have it in hand. Decisions only: no clock, no Ray, no rows.

A task that kills a worker twice, alone in its hands, is looked through by *probes*: orders to make only a range of its
rows and to publish nothing. A range that kills is halved, until one row has killed two workers by itself. It is found
guilty, and the task is made without it; if that kills again, the rows behind it are looked through.

All of it is bounded: `MAX_GUILTY` rows, for each of them one probe per halving and two more, and `MAX_FRUITLESS`
searches that end with a row that kills nobody: what killed was a mishap, or all rows together. So the task is then made
in smaller batches.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
from dataclasses import dataclass, field

MAX_GUILTY = 4
MAX_FRUITLESS = 2
CONFIRMATIONS = 2  # deaths over one row alone before it is found guilty

Range = tuple[int, int]  # rows from the first to the one before the second


@dataclass(frozen=True, kw_only=True, slots=True)
class Death:
    """How a worker ended that had one task in hand."""

    reason: str  # one line
    hung: bool = False  # it was ended, since it did nothing any more
    starved: bool = False  # it was ended, since its machine ran out of memory

    @property
    def code(self) -> str:
        """Of the failures table."""
        return "worker_hung" if self.hung else "worker_crashed"

    @property
    def message(self) -> str:
        """Of the failures table, where it is the last one of a row found guilty."""
        return f"each worker that had this row alone in hand was lost; of the last one: {self.reason}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """What is known of a task when it is handed out.

    Attributes:
        probe: make these rows alone, and publish nothing.
        guilty: rows that are left out, and how the last worker died of each.
        halvings: how often the frame budget is to be halved, since the task seems to need too much memory.
        tries: how often it is handed out, this time included.
    """

    probe: Range | None = None
    guilty: Mapping[int, Death] = field(default_factory=dict)
    halvings: int = 0
    tries: int = 1


class Isolation:
    """The search through one task.

    Attributes:
        guilty: by row, the last of the deaths that it was found guilty of.
        probe: what is to be made next; None for the whole task without its guilty rows.
        fruitless: searches that have ended without a row to blame.
        hopeless: nothing is left to be tried.
    """

    def __init__(self, rows: int) -> None:
        self.guilty: dict[int, Death] = {}
        self.fruitless = 0
        self.hopeless = False
        self._search = self._orders(rows)
        self.probe: Range | None = next(self._search)

    def ended(self, death: Death | None) -> None:
        """Says how what `probe` orders ended; None when the worker has lived through it."""
        try:
            self.probe = self._search.send(death)
        except StopIteration:
            self.hopeless = True

    def _orders(self, rows: int) -> Generator[Range | None, Death | None, None]:
        """Yields orders, and is sent how each of them ended; a whole task that ends well ends it all, from outside."""
        if (yield 0, 0) and (yield 0, 0):
            return  # reading it is enough to kill
        start = 0
        while start < rows and self.fruitless < MAX_FRUITLESS and len(self.guilty) < MAX_GUILTY:
            first, deaths = yield from self._narrowed(start, rows)
            death = yield from self._confirmed(first, CONFIRMATIONS - deaths)
            if death is None:
                self.fruitless += 1
            else:
                self.guilty[first] = death
                # Those before it have been made, in probes that nobody died of.
                start = first + 1
            yield None

    def _narrowed(self, low: int, high: int) -> Generator[Range, Death | None, tuple[int, int]]:
        """The first row to blame, if any of them is, and how many have died of it alone."""
        deaths = 0
        while high - low > 1:
            middle = (low + high) // 2
            if (yield low, middle):
                high, deaths = middle, 1
            else:
                low, deaths = middle, 0
        return low, deaths

    def _confirmed(self, row: int, times: int) -> Generator[Range, Death | None, Death | None]:
        death = None
        for _ in range(times):
            death = yield row, row + 1
            if death is None:
                return None
        return death
