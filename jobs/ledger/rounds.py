"""Rounds: what is recorded of each time that a finished job took up rows which had failed.

A job begins with round 0, its own plan. Round N is under way when its record is there, and then the job is not finished
until the totals of that round are. The record names the plan that the job has from then on: the one before it, and
shards after its last one. A shard belongs to the round whose plan first had it, and its commit records name that plan.

Only the driver writes a record, under the lease, and under a name with the lease's generation. Should a write of a run
that has lost the lease land late, it is of a lower generation than that of the run that has it, and the highest counts.
Both say the same, since a round follows from the failures table of the one before.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from jobs.errors import StorageError
from jobs.ledger.layout import ROUND_NAME, ROUNDS, round_name
from jobs.storage.folders import Folder


@dataclass(frozen=True, kw_only=True, slots=True)
class Round:
    """One round after the first."""

    number: int  # from 1
    plan: str  # digest of the plan with its shards
    shard: int  # its first one
    taken: dict[str, int]  # the rows that it tries again, by the code that they had failed with
    begun_at: float  # unix time


def read_rounds(folder: Folder) -> list[Round]:
    """The rounds that were begun, in order.

    Raises:
        StorageError: the record of one is damaged, or gone.
    """
    newest: dict[int, str] = {}
    for name in folder.list(ROUNDS):
        if match := ROUND_NAME.match(name):
            newest[int(match[1])] = name  # they come in the order of generations
    rounds = [_read(folder, newest[number]) for number in sorted(newest)]
    if [each.number for each in rounds] != list(range(1, len(rounds) + 1)):
        raise StorageError(f"{folder.path(ROUNDS)}: the records of rounds are not 1 to {len(rounds)}: one is gone")
    return rounds


def write_round(folder: Folder, each: Round, generation: int) -> None:
    """Begins a round; generation is that of the lease."""
    folder.put(round_name(each.number, generation), json.dumps(asdict(each), indent=1).encode())


def plans_by_shard(first: str, rounds: Sequence[Round]) -> list[tuple[int, str]]:
    """From which shard on commit records name which plan; ``first`` is the digest of the job's own."""
    return [(0, first), *((each.shard, each.plan) for each in rounds)]


def _read(folder: Folder, name: str) -> Round:
    try:
        return Round(**json.loads(folder.read(name)))
    except FileNotFoundError:
        raise StorageError(f"{folder.path(name)} is gone: it says which rows are tried again") from None
    except (ValueError, TypeError) as error:
        raise StorageError(f"{folder.path(name)} is damaged: {error}") from None
