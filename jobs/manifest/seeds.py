"""The seeds of rows: their own, or such as follow from the job's seed and their ids."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass

import pyarrow as pa

from jobs.manifest.manifest import Ints
from jobs.manifest.problems import Problem

EXACT_FLOAT = 2**53  # whole numbers up to here are exact in float64


def derived_seed(job_seed: int, row_id: str, tried_in: int = 0) -> int:
    """The seed of a row that has none: the first 8 bytes of sha256 of ``"{job_seed}:{id}"``, big-endian, unsigned.

    Args:
        tried_in: the round in which the row got another seed; of ``"{job_seed}:{id}:{tried_in}"`` then.
    """
    text = f"{job_seed}:{row_id}:{tried_in}" if tried_in else f"{job_seed}:{row_id}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


@dataclass(frozen=True, slots=True)
class Seeds:
    """The seeds of the rows of one table."""

    own: list[int | float | None]  # as the manifest has them
    bits: int  # how long a seed may be that the column holds exactly, and that is not negative
    rounds: list[int]  # in which the row got another seed, which goes before its own; 0: in none
    job_seed: int

    @classmethod
    def of(cls, table: pa.Table, job_seed: int, reseeded: Ints | None) -> Seeds:
        """Those of a manifest's rows; `reseeded` as for `jobs.manifest.rows.check_rows`."""
        rounds = [0] * table.num_rows if reseeded is None else reseeded.tolist()
        if "seed" not in table.column_names:
            return cls([None] * table.num_rows, 64, rounds, job_seed)
        column = table["seed"]
        return cls(column.to_pylist(), _bits(column.type), rounds, job_seed)

    def is_another(self, position: int) -> bool:
        """Whether the row has neither its own seed nor that which follows from its id alone."""
        return self.rounds[position] > 0

    def of_row(self, position: int, row_id: str) -> int | Problem:
        """The row's seed, -2**63 to 2**64 - 1; or what is wrong with its own, also where it has got another."""
        own = self.own[position]
        if isinstance(own, float):
            if math.isnan(own):
                own = None
            elif math.isinf(own) or own != int(own) or abs(own) > EXACT_FLOAT:
                return Problem("bad_seed", f"seed {own} is not a whole number of up to 2**53; store seeds as integers")
        if self.rounds[position]:
            return derived_seed(self.job_seed, row_id, self.rounds[position]) >> (64 - self.bits)
        return derived_seed(self.job_seed, row_id) if own is None else int(own)


def _bits(kind: pa.DataType) -> int:
    if pa.types.is_integer(kind):
        return int(kind.bit_width) - pa.types.is_signed_integer(kind)
    return {16: 11, 32: 24, 64: 53}[kind.bit_width]
