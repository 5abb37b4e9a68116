"""Rows that failed in a finished job, taken up again: those that failed of what another try may mend.

They are copied from the failures table into a file in the ledger, which the manifest then ends with, and get shards of
their own after the last one. Where that lies is a matter of numbers only: a shard of them is made, committed and
finished as any other. The failures of a job of tokens have no audio: its rows are copied from the manifest.

Everything about a round follows from the failures table of the one before, so that two runs which both begin it, one of
which has lost the lease, begin the same one.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from jobs.crew.isolation import MAX_GUILTY
from jobs.errors import StorageError
from jobs.formats.writers import pick
from jobs.ledger.layout import FAILURES, round_rows_name
from jobs.ledger.ledger import Ledger
from jobs.ledger.parts import BATCH_ROWS, READ_GROUP_ROWS, write_table
from jobs.ledger.records import text_bytes
from jobs.ledger.tally import Summary
from jobs.manifest.columns import FAILURE_COLUMNS
from jobs.manifest.manifest import Ints, RowGroups, described
from jobs.plan import Plan, cuts
from jobs.storage.folders import Folder
from jobs.storage.urls import Options

RESEEDED = frozenset({"bad_audio", "not_finite"})  # the same noise would make the same audio
ALONE = frozenset({"worker_crashed", "worker_hung"})  # a shard with more of these than it looks for is given up
OTHERS = frozenset({"out_of_memory", "synthesis_error", "wrong_length"})
MENDABLE = RESEEDED | ALONE | OTHERS
COPY_BYTES = 8 << 20


def mendable(summary: Summary, kind: str = "synth") -> dict[str, int]:
    """The failed rows of a finished job that ``begin_retry`` takes up, by code."""
    # A recording stays what it is.
    codes = MENDABLE if kind == "synth" else MENDABLE - RESEEDED
    return {code: rows for code, rows in summary.errors.items() if code in codes}


def begin_retry(ledger: Ledger, options: Options | None = None) -> Ledger | None:
    """Begins another round of a finished job, under its lease.

    A round is of the failed rows that are ``mendable``. Those in ``RESEEDED`` get another seed, and keep it in
    later rounds. Those in ``ALONE`` are put into shards of few rows.

    Args:
        options: storage options, for a manifest.

    Returns:
        The job as it then is; None when there is no such row, or the job is not finished.

    Raises:
        LeaseHeld: another run has taken over.
        StorageError: the failures table is not the one that the job wrote.
    """
    summary = ledger.summary()
    taken = {} if summary is None else mendable(summary, ledger.kind)
    if summary is None or not taken:
        return None
    number = len(ledger.rounds) + 1
    with tempfile.TemporaryDirectory(prefix="s3gen-") as folder:
        table, copy = Path(folder) / "failures", Path(folder) / "rows"
        _download(ledger.folder, summary.failures_sha256, table)
        plan = _extended(ledger, number, table, copy, taken, options)
        ledger.folder.upload(plan.manifest.files[-1].url, copy)
    return ledger.begin_round(plan, taken)


def _download(folder: Folder, sha256: str, local: Path) -> None:
    """The failures table: everybody can write there, and it is about to become input."""
    digest = hashlib.sha256()
    try:
        with folder.open(FAILURES) as source, local.open("wb") as target:
            while block := source.read(COPY_BYTES):
                digest.update(block)
                target.write(block)
    except FileNotFoundError:
        raise StorageError(f"{folder.path(FAILURES)} is missing: it has the rows to be tried again") from None
    if digest.hexdigest() != sha256:
        raise StorageError(
            f"{folder.path(FAILURES)} is not the table that the job wrote, so its rows are not tried again; put that "
            "one back, or make them in another output: s3gen synth CONFIG --manifest FAILURES --set output=OTHER"
        )


def _extended(
    ledger: Ledger, number: int, table: Path, copy: Path, taken: Mapping[str, int], options: Options | None
) -> Plan:
    """The plan with the rows that round ``number`` tries again, which are written to ``copy``.

    Args:
        taken: how many they are, by code.
    """
    plan, found, ids = ledger.plan, list[tuple[Ints, Ints]](), list[bytes | None]()
    together = sum(rows for code, rows in taken.items() if code not in ALONE)
    before = dict(zip(plan.again.tolist(), plan.reseeded.tolist(), strict=True))  # what comes last counts

    def rows() -> Iterator[pa.Table]:
        for codes in (taken.keys() - ALONE, ALONE):
            for failures in _failed_of(codes, table):
                numbers = plan.numbers_of(failures["manifest"].to_pylist(), failures["row"].to_numpy())
                found.append((numbers, _reseeded(numbers, failures, before, number)))
                ids.extend(text_bytes(failures["id"]))
                if ledger.kind == "synth":
                    yield _as_planned(failures, plan.manifest.columns)
                else:
                    yield from (plan.manifest.read([plan.row(each)], options) for each in numbers)

    written = write_table("", plan.manifest.columns, rows(), copy, group_rows=READ_GROUP_ROWS)
    file, groups = described(round_rows_name(number, written.sha256), copy)
    again, reseeded = (np.concatenate(numbers) for numbers in zip(*found, strict=True))
    starts = _starts(groups, together, ledger.job["config"]["shard_rows"])
    return plan.extended(file, _apart(starts, ids), again, reseeded)


def _starts(groups: RowGroups, together: int, shard_rows: int) -> Ints:
    """Where shards begin, and the number of rows: of the first ``together`` rows as always, of the others with few."""
    rows = int(groups.rows.sum())
    first = cuts([groups], together, shard_rows)[:-1] if together else np.zeros(0, np.int64)
    return np.concatenate([first, np.arange(together, rows, MAX_GUILTY), [rows]]).astype(np.int64)


def _apart(starts: Ints, ids: Sequence[bytes | None]) -> Ints:
    """Where shards begin, with more of them where an id is there again: in one shard its row would fail for ever.

    Two rows of one id that can be tried again were in two shards, where both may be made.
    """
    begins, found, seen = set(starts.tolist()), list[int](), set[bytes | None]()
    for at, row_id in enumerate(ids):
        if at in begins or row_id in seen:
            found.append(at)
            seen.clear()
        seen.add(row_id)
    return np.array([*found, len(ids)], np.int64)


def _failed_of(codes: Collection[str], table: Path) -> Iterator[pa.Table]:
    """The rows of the failures table with one of these codes, some thousand at a time."""
    wanted = pa.array(sorted(codes), pa.string())
    with table.open("rb") as file:
        for batch in pq.ParquetFile(file).iter_batches(batch_size=BATCH_ROWS, use_threads=False):
            failures = pa.Table.from_batches([batch])
            mask = pc.is_in(failures["error"], wanted).to_numpy()
            if mask.any():
                yield pick(failures, np.flatnonzero(mask).tolist())


def _as_planned(failures: pa.Table, columns: pa.Schema) -> pa.Table:
    """Failed rows as the manifest had them; some of its columns may have other names in the failures table."""
    names = [name for name in columns.names if name not in ("id", "voice_id")]
    places = {"id": 0, "voice_id": 1} | {name: 2 + len(FAILURE_COLUMNS) + n for n, name in enumerate(names)}
    return pa.table([failures.column(places[name]) for name in columns.names], schema=columns)


def _reseeded(numbers: Ints, failures: pa.Table, before: Mapping[int, int], number: int) -> Ints:
    """Of each row the round that gives it another seed: this one, one before it, or none (0)."""
    pairs = zip(numbers.tolist(), failures["error"].to_pylist(), strict=True)
    return np.array([number if error in RESEEDED else before.get(row, 0) for row, error in pairs], np.int64)
