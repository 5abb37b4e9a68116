"""Reads a whole output again and says what is wrong with it.

Everything is held against everything: each committed shard's files against its record, the audio against the index,
both against the manifest rows that the plan gives the shard (see ``audio_contents``; of a job that makes tokens, see
``token_contents``); in a finished output also the tables of the whole against the parts, the totals, and what lies in
the folders against what the records name. Failed rows are no damage, and an output that is not finished is only checked
as far as it is committed.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Collection, Generator, Iterator, Sequence

import pyarrow as pa
import pyarrow.parquet as pq

from jobs.errors import StorageError, StorageUnknown
from jobs.ledger.layout import DATA, DATA_NAME, DUPLICATES, FAILURES, finished_name
from jobs.ledger.ledger import Ledger
from jobs.ledger.records import CommitRecord, StoredFile, counts, ids_digest, text_bytes
from jobs.ledger.tables import remaining
from jobs.ledger.tally import Summary, Tally
from jobs.parquet.reader import read_parquet
from jobs.plan import Shard
from jobs.storage.faults import as_input
from jobs.storage.folders import Folder
from jobs.storage.urls import Options
from jobs.verify.audio_contents import AudioContents
from jobs.verify.equality import same
from jobs.verify.findings import Finding, Verification
from jobs.verify.token_contents import TokenContents

BATCH_ROWS = 8_192


def verify(
    output: str, options: Options | None = None, *, on_shard: Callable[[int, int], None] = lambda done, total: None
) -> Verification:
    """Checks an output, finished or not.

    Args:
        on_shard: is told after each shard how many of how many are done.

    Raises:
        InputError: no job was begun there, its plan cannot be read, or nobody may read it.
        StorageError: its store does not answer.
    """
    with as_input("output"):
        ledger = Ledger.open(Folder(output, options))
        summary, committed = ledger.summary(), ledger.committed()
    result = Verification(finished=summary is not None, shards_total=len(ledger.plan))
    if ledger.kind == "tokenize":
        result.looked_at = "rows of tokens read"
    check = _Check(ledger, options, result)
    done = 0
    for number in range(ledger.plan.ranges):
        for found in check.range(number):
            result.add(found)
            done += 1
            on_shard(done, len(committed))
    if summary is None:
        result.notes.append(f"the job is not finished: {len(committed)} of {len(ledger.plan)} shards are committed")
    else:
        result.add(check.whole(summary))
    return result


class _Check:
    """One pass over an output."""

    def __init__(self, ledger: Ledger, options: Options | None, result: Verification) -> None:
        self._ledger, self._folder, self._options, self._result = ledger, ledger.folder, options, result
        tokens = ledger.kind == "tokenize"
        self._contents: TokenContents | AudioContents
        self._contents = TokenContents(result) if tokens else AudioContents(ledger, options, result)
        self._tally = Tally.of([])
        self._index = _Cursor(*ledger.public_index, ledger.tables.index, result.finished)
        self._failures = _Cursor(self._folder, FAILURES, ledger.tables.failures, result.finished)

    def range(self, number: int) -> Iterator[Iterator[Finding]]:
        """Everything about the committed shards of a range, each in turn; last, in a finished output, what lies by."""
        names = self._ledger.record_names(number)
        records: list[CommitRecord] = []
        for shard, name in names.items():
            yield self._shard(shard, name, records)
        self._tally = Tally.total([self._tally, Tally.of(records)])
        if self._result.finished:
            self._result.add(self._around(number, names, records))

    def _around(self, number: int, names: Collection[int], records: Sequence[CommitRecord]) -> Iterator[Finding]:
        """Shards without a record, and files that no record names."""
        for shard in self._ledger.plan.range(number):
            if shard not in names:
                yield Finding("missing_shard", f"shard {shard}", "the job is finished, but this shard has no record")
        named = {file.name for record in records for file in record.files()}
        for name in self._ledger.data_names(number):
            if name not in named:
                yield _stray(name)

    def _shard(self, number: int, name: str, records: list[CommitRecord]) -> Iterator[Finding]:
        """Everything about one committed shard, whose record is added to ``records``."""
        try:
            record = self._ledger.read_record(number, name)
        except StorageError as error:
            yield Finding("record", name, str(error))
            return
        records.append(record)
        self._result.shards_checked += 1
        contents: dict[str, bytes] = {}
        for file in record.files():
            yield from self._content(file, contents)
        index = yield from _table(record.index, contents, self._index.schema)
        failures = yield from _table(record.failures, contents, self._failures.schema)
        shard = self._ledger.plan.shard(number)
        yield from self._index.compare(index, name)
        yield from self._failures.compare(remaining(failures, number, self._ledger.plan), name)
        yield from _check_counts(record, index, failures, self._contents.samples(index))
        failed = self._positions(shard, failures)
        if ids_digest(_ids(shard.rows, index["id"], failures["id"], failed)) != record.ids:
            message = "the ids of its rows, made and failed, are not those that were committed"
            yield Finding("ids", f"shard {number}", message)
        yield from self._contents.check(record, index, failed, contents)

    def _positions(self, shard: Shard, failures: pa.Table) -> list[int | None]:
        """Where in its shard each row of its part of the failures is; None where it is in none of its rows."""
        urls, numbers = self._ledger.plan.origins(shard)
        places = {place: at for at, place in enumerate(zip(urls, numbers.tolist(), strict=True))}
        origins = zip(*(failures[name].to_pylist() for name in ("manifest", "row")), strict=True)
        return [places.get(origin) for origin in origins]

    def whole(self, summary: Summary) -> Iterator[Finding]:
        """What only a finished output has."""
        yield from self._index.end()
        yield from self._failures.end()
        yield from self._duplicates(summary)
        failed = self._ledger.not_taken_up(self._tally.errors)
        counted = (self._tally.shards, self._tally.rows_done, failed, self._tally.problems, self._tally.samples)
        stated = (summary.shards, summary.rows_done, summary.errors, summary.problems, summary.samples)
        if counted != stated or summary.rows_failed != sum(failed.values()):
            message = f"shards, rows done, rows failed, problems, samples are {counted}, the totals say {stated}"
            yield Finding("totals", finished_name(len(self._ledger.rounds)), message)
        for prefix in DATA:
            for name in self._folder.list(prefix):
                match = DATA_NAME.match(name)
                if not match or int(match[1]) >= len(self._ledger.plan):
                    yield _stray(name)

    def _content(self, file: StoredFile, contents: dict[str, bytes]) -> Iterator[Finding]:
        try:
            data = self._folder.read(file.name)
        except FileNotFoundError:
            yield Finding("missing_file", file.name, "a commit record names this file")
            return
        except (StorageError, StorageUnknown) as error:
            yield Finding("unreadable_file", file.name, str(error))
            return
        if len(data) != file.bytes:
            yield Finding("damaged_file", file.name, f"{len(data)} bytes, {file.bytes} were committed")
        elif hashlib.sha256(data).hexdigest() != file.sha256:
            yield Finding("damaged_file", file.name, "its sha256 is not the one that was committed")
        contents[file.name] = data

    def _duplicates(self, summary: Summary) -> Iterator[Finding]:
        try:
            rows = pq.read_metadata(io.BytesIO(self._folder.read(DUPLICATES))).num_rows
        except FileNotFoundError:
            rows = 0
        except (pa.ArrowException, OSError) as error:
            yield Finding("unreadable_file", DUPLICATES, str(error))
            return
        if rows != summary.duplicates:
            yield Finding("table", DUPLICATES, f"{rows} rows, the totals say {summary.duplicates}")


class _Cursor:
    """Walks through a table of the finished output beside the parts that it was made of."""

    def __init__(self, folder: Folder, name: str, schema: pa.Schema, finished: bool) -> None:
        self._name, self.schema = name, schema
        self._problem: str | None = None
        self._pending = schema.empty_table()
        self._batches: Iterator[pa.RecordBatch] | None = self._open(folder) if finished else None

    def _open(self, folder: Folder) -> Iterator[pa.RecordBatch]:
        try:
            # A large index is a folder of parts.
            for name in folder.list(f"{self._name}/") or [self._name]:
                with folder.open(name) as handle:
                    yield from pq.ParquetFile(handle).iter_batches(batch_size=BATCH_ROWS, use_threads=False)
        except FileNotFoundError:
            self._problem = "the table is missing"
        except (pa.ArrowException, OSError, StorageError) as error:
            self._problem = f"cannot be read: {error}"

    def compare(self, part: pa.Table, where: str) -> Iterator[Finding]:
        """The next rows must be those of ``part``."""
        if self._batches is None:
            return
        try:
            holds = same(self._take(part.num_rows), part)
        except (pa.ArrowException, ValueError, KeyError) as error:
            holds, self._problem = False, str(error)
        if not holds:
            yield self._finding(f"does not hold the rows of {where} in their place")
            self._batches = None  # what follows is shifted: one finding is enough

    def end(self) -> Iterator[Finding]:
        """There must be no more rows."""
        if self._batches is not None and (self._take(1).num_rows or self._problem):
            yield self._finding("has rows that no shard has")

    def _take(self, rows: int) -> pa.Table:
        while self._batches is not None and self._pending.num_rows < rows:
            batch = next(self._batches, None)
            if batch is None:
                break
            table = pa.Table.from_batches([batch]).select(self.schema.names).cast(self.schema)
            self._pending = pa.concat_tables([self._pending, table])
        taken, self._pending = self._pending.slice(0, rows), self._pending.slice(rows)
        return taken

    def _finding(self, message: str) -> Finding:
        return Finding("table", self._name, self._problem or message)


def _stray(name: str) -> Finding:
    return Finding("stray", name, "no commit record names this file")


def _ids(rows: int, made: pa.ChunkedArray, failed: pa.ChunkedArray, places: Sequence[int | None]) -> pa.Array:
    """The ids of a shard's rows in the order of the manifest: where none failed, the next one that was made is."""
    failures = dict(zip(places, text_bytes(failed), strict=True))
    others = iter(text_bytes(made))
    return pa.array([failures[at] if at in failures else next(others, b"") for at in range(rows)], pa.large_binary())


def _table(
    file: StoredFile | None, contents: dict[str, bytes], schema: pa.Schema
) -> Generator[Finding, None, pa.Table]:
    """A part of the index or the failures; empty when there is none, or none that can be read."""
    if file is None or file.name not in contents:
        return schema.empty_table()
    try:
        return read_parquet(contents[file.name]).select(schema.names).cast(schema)
    except (pa.ArrowException, OSError, ValueError, KeyError) as error:
        yield Finding("unreadable_file", file.name, f"{type(error).__name__}: {error}")
        return schema.empty_table()


def _check_counts(record: CommitRecord, index: pa.Table, failures: pa.Table, samples: int) -> Iterator[Finding]:
    where = f"shard {record.shard}"
    for what, rows, stated in (
        ("index", index.num_rows, record.rows_done),
        ("failures", failures.num_rows, record.rows_failed),
    ):
        if rows != stated:
            yield Finding(what, where, f"{rows} rows in this part, the record says {stated}")
    errors = counts(failures["error"].to_pylist())
    if errors != record.errors:
        yield Finding("failures", where, f"the rows failed of {errors}, the record says {record.errors}")
    if samples != record.samples:
        yield Finding("index", where, f"{samples} samples in the index, the record says {record.samples}")
