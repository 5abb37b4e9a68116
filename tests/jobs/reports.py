"""Reports and workers as a view gets them."""

from __future__ import annotations

from typing import Any

from jobs.ledger.records import ShardReport


class Clock:
    """One that a test moves."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def report(**values: Any) -> ShardReport:
    """Of a shard of one row and ten seconds that was made at the first try, where no value says otherwise."""
    told: dict[str, Any] = {
        **{"shard": 0, "rows_done": 1, "rows_failed": 0, "samples": 240_000, "errors": {}, "problems": {}},
        **{"positions": 100, "padding": 0, "worker": "there:7", "tries": 1, "counted": True, "seconds": {"make": 10}},
    }
    return ShardReport(**{**told, **values})
