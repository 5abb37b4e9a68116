"""What the objects of an output are called. See ``ledger``, which alone writes most of them."""

from __future__ import annotations

import re

from jobs.plan import RANGE_SHARDS

JOB = "job.json"
FINISHED = "ledger/finished.json"
COMMITS = "ledger/commits/"
FINISH = "ledger/finish/"
DATA = ("audio/", "ledger/index/", "ledger/failures/")
INDEX, FAILURES, DUPLICATES = TABLES = ("index.parquet", "failures.parquet", "duplicates.parquet")
COMMIT_NAME = re.compile(r"^ledger/commits/\d{4,}/(\d{7,})(?:\.([0-9a-f]+))?\.json$")
DATA_NAME = re.compile(r"^(?:audio|ledger/index|ledger/failures)/(\d{7,})-[^/]*$")


def plan_name(digest: str) -> str:
    """Of a plan's file."""
    return f"ledger/plan-{digest[:32]}.parquet"


def range_prefix(number: int) -> str:
    """What the commit records of a range of shards begin with."""
    return f"{COMMITS}{number:04d}/"


def chosen_name(number: int, generation: int) -> str:
    """Of the choice among the tries of a range, by the lease's generation; the last one in order counts."""
    return f"{range_prefix(number)}chosen-{generation:08d}.json"


def record_prefix(shard: int) -> str:
    """What the commit records of a shard begin with."""
    return f"{range_prefix(shard // RANGE_SHARDS)}{shard:07d}."


def record_name(shard: int, attempt: str = "") -> str:
    """Of a commit record; with the attempt, where each try writes one of its own."""
    return f"{record_prefix(shard)}{attempt}.json" if attempt else f"{record_prefix(shard)}json"
