"""What the objects of an output are called. See ``ledger``, which alone writes most of them."""

from __future__ import annotations

import re

from jobs.plan import RANGE_SHARDS

JOB = "job.json"
FINISHED = "ledger/finished.json"  # of the first round
COMMITS = "ledger/commits/"
ROUNDS = "ledger/rounds/"
FINISH = "ledger/finish/"
DATA = ("audio/", "ledger/index/", "ledger/failures/")
# What the names of files in these begin with, up to the number of their shard. lhotse wants two kinds by their names.
DATA_PREFIXES = (*DATA, "audio/recording.", "audio/cuts.")
INDEX, FAILURES, DUPLICATES = TABLES = ("index.parquet", "failures.parquet", "duplicates.parquet")
COMMIT_NAME = re.compile(r"^ledger/commits/\d{4,}/(\d{7,})(?:\.([0-9a-f]+))?\.json$")
ROUND_NAME = re.compile(r"^ledger/rounds/(\d{4})-\d{8}\.json$")
DATA_NAME = re.compile(r"^(?:audio/(?:recording\.|cuts\.)?|ledger/index/|ledger/failures/)(\d{7,})-[^/]*$")


def plan_name(digest: str) -> str:
    """Of a plan's file."""
    return f"ledger/plan-{digest[:32]}.parquet"


def range_prefix(number: int) -> str:
    """What the commit records of a range of shards begin with."""
    return f"{COMMITS}{number:04d}/"


def chosen_name(number: int, generation: int, round_: int) -> str:
    """Of the choice among the tries of a range, by the lease's generation and the round; the last in order counts."""
    return f"{range_prefix(number)}chosen-{generation:08d}-{round_:04d}.json"


def finished_name(round_: int) -> str:
    """Of the totals of a round; the job is finished when those of the last one are there."""
    return f"{FINISHED.removesuffix('.json')}-{round_:04d}.json" if round_ else FINISHED


def finish_prefix(round_: int) -> str:
    """What the names begin with of what the end of a round needs while it is under way."""
    return f"{FINISH}{round_:04d}/"


def round_name(number: int, generation: int) -> str:
    """Of the record of a round, by the lease's generation; the last one in order counts."""
    return f"{ROUNDS}{number:04d}-{generation:08d}.json"


def round_rows_name(number: int, digest: str) -> str:
    """Of the rows that a round tries again."""
    return f"{ROUNDS}{number:04d}-{digest[:32]}.parquet"


def record_prefix(shard: int) -> str:
    """What the commit records of a shard begin with."""
    return f"{range_prefix(shard // RANGE_SHARDS)}{shard:07d}."


def record_name(shard: int, attempt: str = "") -> str:
    """Of a commit record; with the attempt, where each try writes one of its own."""
    return f"{record_prefix(shard)}{attempt}.json" if attempt else f"{record_prefix(shard)}json"
