"""The rows of a manifest, and the checks that each goes through before anything is made of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from jobs.config.config import JobConfig
from jobs.manifest.manifest import Ints
from jobs.manifest.problems import Problem, bad_text
from jobs.manifest.seeds import Seeds
from jobs.manifest.texts import Text, shown, texts
from jobs.manifest.token_lists import TokenLists
from s3gen.splitting import Splitting


@dataclass(frozen=True, slots=True)
class Row:
    """A row that can be synthesised."""

    position: int  # in the table that was checked
    id: str
    voice_id: str
    tokens: Ints  # (L,) 0..6560, without the language model's start and stop; with the tail that the job adds
    seed: int  # -2**63 .. 2**64 - 1
    reseeded: bool = False  # it is not its own, nor that which follows from its id
    cuts: tuple[int, ...] = ()  # of the tokens, ascending: it is made in so many pieces and one


@dataclass(frozen=True, slots=True)
class Failure:
    """A row that cannot be, and why."""

    position: int
    id: str | None
    voice_id: str | None
    error: str  # a code, see check_rows
    message: str


def job_rows(table: pa.Table, config: JobConfig, reseeded: Ints | None = None) -> tuple[list[Row], list[Failure]]:
    """`check_rows` as a job's configuration has it: for all who make, count or verify its rows, so that they agree."""
    return check_rows(
        table,
        job_seed=config.seed,
        max_tokens=config.max_tokens,
        splitting=config.splitting,
        reseeded=reseeded,
        tail=config.tail,
    )


def check_rows(
    table: pa.Table,
    *,
    job_seed: int,
    max_tokens: int,
    splitting: Splitting | None = None,
    reseeded: Ints | None = None,
    tail: Sequence[int] = (),
) -> tuple[list[Row], list[Failure]]:
    """Sorts the rows of a shard into those that can be synthesised and those that cannot.

    The codes of the failures, of which a row gets the first that applies: ``null_id``, ``bad_id`` (not UTF-8),
    ``null_voice_id``, ``bad_voice_id``, ``null_tokens``, ``token_out_of_range`` (a value other than 0..6560 and the
    start and stop tokens 6561 and 6562, or a null), ``empty_tokens`` (nothing left without start and stop),
    ``too_long``, ``bad_seed``, ``duplicate_id`` (an earlier row of this table, good or bad, has the id).

    A row without a seed gets ``int.from_bytes(sha256(f"{job_seed}:{id}" in UTF-8).digest()[:8], "big")``.

    Args:
        splitting: cuts rows that are longer than its own limit, and none is too long below an hour; None: nothing is.
        reseeded: (rows,) of each row the round that gave it another seed, which goes before its own; 0: none did.
        tail: tokens that are added to each row's own, and count as they do.

    Raises:
        Nothing for any value of a row.
    """
    tokens = TokenLists.of(table["tokens"])
    seeds = Seeds.of(table, job_seed, reseeded)
    check = _Check(tokens, tokens.problems(max_tokens, splitting, len(tail)), seeds, splitting, tail)
    rows: list[Row] = []
    failures: list[Failure] = []
    for position, (row_id, voice_id) in enumerate(zip(texts(table["id"]), texts(table["voice_id"]), strict=True)):
        outcome = check.row(position, row_id, voice_id)
        if isinstance(outcome, Row):
            rows.append(outcome)
        else:
            known = [text if isinstance(text, str) else None for text in (row_id, voice_id)]
            failures.append(Failure(position, known[0], known[1], outcome.error, outcome.message))
    return rows, failures


@dataclass(frozen=True, slots=True)
class _Check:
    """The rows of one table, each looked at once, in their order."""

    tokens: TokenLists
    token_problems: dict[int, Problem]
    seeds: Seeds
    splitting: Splitting | None
    tail: Sequence[int]
    ids: set[str] = field(default_factory=set)  # of the rows that were looked at

    def row(self, position: int, row_id: Text, voice_id: Text) -> Row | Problem:
        """The row as it is synthesised, or the first that is wrong with it."""
        if not isinstance(row_id, str):
            return bad_text("id", row_id)
        is_doubled = row_id in self.ids
        self.ids.add(row_id)
        if not isinstance(voice_id, str):
            return bad_text("voice_id", voice_id)
        if position in self.token_problems:
            return self.token_problems[position]
        seed = self.seeds.of_row(position, row_id)
        if isinstance(seed, Problem):
            return seed
        if is_doubled:
            return Problem("duplicate_id", f"an earlier row of this shard has the id {shown(row_id)}")
        spoken = self.tokens.of_row(position)
        if self.tail:
            spoken = np.append(spoken, self.tail)
        cuts = () if self.splitting is None else tuple(self.splitting.cuts(spoken))
        return Row(position, row_id, voice_id, spoken, seed, self.seeds.is_another(position), cuts)
