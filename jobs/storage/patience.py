"""Patience with a store in trouble: the same request again, after waits that grow and are never those of the neighbour.

A thousand workers that a store has asked to slow down must not come back together: each wait is a random part of a
bound that doubles. What will not pass (no rights, no such object, a wrong request) is never repeated.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

from jobs.storage.credentials import scrubbed
from jobs.storage.faults import Doubtful, described, passes, status_of, surely_failed, unreached

T = TypeVar("T")
log = logging.getLogger(__name__)

_ALL = "all stores"
_REACHED: set[str] = set()  # the stores that have answered this process


def trust_addresses() -> None:
    """Every store is waited for from the first request on: another process has sent this one, and reached them."""
    _REACHED.add(_ALL)


@dataclass(frozen=True, kw_only=True, slots=True)
class Patience:
    """For how long a request that meets passing trouble is repeated; times in seconds."""

    total: float = 300.0  # from the first failure to the last try
    stranger: float = 5.0  # the same, of a store that has not answered this process yet: its address may be wrong
    first_wait: float = 0.5  # bound of the first wait; each further one has twice the bound
    longest_wait: float = 30.0
    warn_after: float = 10.0  # of trouble with one request
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep
    chance: Callable[[], float] = random.random  # 0 to 1
    reached: set[str] = field(default_factory=lambda: _REACHED)

    def repeat(self, request: Callable[[], T], *, store: str, what: str, hidden: list[str], writing: bool = False) -> T:
        """The answer to ``request``, asked until it comes, fails for good, or the patience ends.

        Args:
            store: names the store, to know it again.
            what: what is asked, with the URL, for a warning: "write s3://bucket/name".
            hidden: texts that no warning may hold.
            writing: whether it matters that a try which failed may have landed.

        Raises:
            Doubtful: a write failed for good after an earlier try of which the outcome is not known.
            Exception: else the last try's error as it came, with a note of the tries.
        """
        trouble = _Trouble(self, what, hidden)
        while True:
            try:
                answer = request()
            except Exception as error:
                if status_of(error) is not None or isinstance(error, FileNotFoundError | FileExistsError):
                    self.reached.add(store)
                known = store in self.reached or _ALL in self.reached
                wait = trouble.met(error, self.total if known else min(self.stranger, self.total), known=known)
                if wait is not None:
                    self.sleep(wait)
                    continue
                if not known and unreached(error):
                    error.add_note("check the address (endpoint_url, AWS_ENDPOINT_URL) and the network")
                if writing and trouble.doubt and surely_failed(error):
                    raise Doubtful(described(error)) from error
                raise
            self.reached.add(store)
            return answer


class _Trouble:
    """The tries of one request so far."""

    def __init__(self, patience: Patience, what: str, hidden: list[str]) -> None:
        self._patience, self._what, self._hidden = patience, what, hidden
        self._tries = 0
        self._began = 0.0
        self._warned = False
        self.doubt = False  # whether one of the tries may have landed

    def met(self, error: Exception, total: float, *, known: bool) -> float | None:
        """Seconds to wait before the next try; None when there shall be none."""
        now = self._patience.clock()
        # The connection may have been lost under way and refused when aiohttp tried again, which it does by itself.
        self.doubt = self.doubt or (known and unreached(error))
        if not self._tries:
            self._began = now
        self._tries += 1
        waited = now - self._began
        passing = passes(error)
        if not passing or waited >= total:
            if self._tries > 1:
                error.add_note(f"{self._tries} tries in {waited:.0f} s")
            return None
        self.doubt = self.doubt or not surely_failed(error)
        if waited >= self._patience.warn_after and not self._warned:
            self._warned = True
            reason = scrubbed(described(error), self._hidden)
            log.warning("cannot %s for %.0f s now, trying up to %.0f s: %s", self._what, waited, total, reason)
        bound = min(self._patience.longest_wait, self._patience.first_wait * 2.0 ** min(self._tries - 1, 60))
        return min(self._patience.chance() * bound, total - waited)


PATIENT = Patience()
