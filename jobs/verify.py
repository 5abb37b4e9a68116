"""Reads a whole output again and says what is wrong with it.

Everything is held against everything: each committed shard's files against its record, the audio against the index,
both against the manifest rows that the plan gives the shard; in a finished output also the tables of the whole against
the parts, the totals, and what lies in the folders against what the records name. Failed rows are no damage, and an
output that is not finished is only checked as far as it is committed.
"""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections import Counter
from collections.abc import Callable, Collection, Generator, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from jobs.checks import inconsistency
from jobs.config import JobConfig, config_from
from jobs.errors import InputError, StorageError, StorageUnknown
from jobs.layout import DATA, DATA_NAME, DUPLICATES, FAILURES, INDEX
from jobs.ledger import Ledger
from jobs.manifest import Failure, Row, check_rows
from jobs.parquet import read_parquet
from jobs.plan import Shard
from jobs.records import CommitRecord, StoredFile, ids_digest, text_bytes
from jobs.storage import Folder
from jobs.tables import INDEX_SCHEMA, failures_schema
from jobs.tally import Summary, Tally
from jobs.urls import Options
from s3gen.constants import SAMPLE_RATE, SAMPLES_PER_TOKEN

MAX_FINDINGS = 1_000  # kept; all are counted
BATCH_ROWS = 8_192


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong.

    Codes: ``record``, ``missing_file``, ``damaged_file``, ``unreadable_file``, ``index``, ``audio``, ``length``,
    ``ids``, ``row_missing``, ``row_twice``, ``row_unknown``, ``failures``, ``missing_shard``, ``table``, ``totals``,
    ``stray``.
    """

    code: str
    where: str  # a file of the output, or a shard
    message: str


@dataclass(kw_only=True, slots=True)
class Verification:
    """What ``verify`` found."""

    finished: bool
    shards_total: int
    shards_checked: int = 0
    rows_checked: int = 0  # clips that were decoded
    damage: int = 0  # number of findings
    findings: list[Finding] = field(default_factory=list)  # the first thousand
    notes: list[str] = field(default_factory=list)  # what could not be checked, or is not finished

    @property
    def exit_code(self) -> int:
        """0 when what is there is whole, else 1."""
        return 1 if self.damage else 0

    def add(self, found: Iterator[Finding]) -> None:
        """Counts findings and keeps the first ones."""
        for finding in found:
            self.damage += 1
            if len(self.findings) < MAX_FINDINGS:
                self.findings.append(finding)


def verify(
    output: str, options: Options | None = None, *, on_shard: Callable[[int, int], None] = lambda done, total: None
) -> Verification:
    """Checks an output, finished or not.

    Args:
        on_shard: is told after each shard how many of how many are done.

    Raises:
        InputError: no job was begun there, or its plan cannot be read.
    """
    folder = Folder(output, options)
    ledger = Ledger.open(folder)
    summary = ledger.summary()
    committed = ledger.committed()
    result = Verification(finished=summary is not None, shards_total=len(ledger.plan))
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
        self._config = ledger.job["config"]
        self._tally = Tally.of([])
        columns = ledger.plan.manifest.columns
        self._index = _Cursor(self._folder, INDEX, INDEX_SCHEMA, result.finished)
        self._failures = _Cursor(self._folder, FAILURES, failures_schema(columns), result.finished)

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
        index = yield from _table(record.index, contents, INDEX_SCHEMA)
        failures = yield from _table(record.failures, contents, self._failures.schema)
        yield from self._index.compare(index, name)
        yield from self._failures.compare(failures, name)
        yield from _check_counts(record, index, failures)
        yield from _check_measures(record, index, config_from(self._config))
        if record.audio is not None and record.audio.name in contents:
            yield from self._audio(record.audio, contents.pop(record.audio.name), index)
        yield from self._rows(self._ledger.plan.shard(number), record, index, failures)

    def whole(self, summary: Summary) -> Iterator[Finding]:
        """What only a finished output has."""
        yield from self._index.end()
        yield from self._failures.end()
        yield from self._duplicates(summary)
        counted = (self._tally.shards, self._tally.rows_done, self._tally.rows_failed, self._tally.samples)
        stated = (summary.shards, summary.rows_done, summary.rows_failed, summary.samples)
        if counted != stated:
            message = f"shards, rows done, rows failed, samples are {counted}, the totals say {stated}"
            yield Finding("totals", "ledger/finished.json", message)
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

    def _audio(self, file: StoredFile, data: bytes, index: pa.Table) -> Iterator[Finding]:
        expected = index.to_pylist()
        found = 0
        try:
            for row_id, clip in _clips(file.name, data):
                if found < len(expected):
                    yield from _check_clip(file.name, found, row_id, clip, expected[found])
                found += 1
        except (pa.ArrowException, OSError, tarfile.TarError, ValueError, KeyError) as error:
            yield Finding("unreadable_file", file.name, f"after {found} clips: {type(error).__name__}: {error}")
            return
        self._result.rows_checked += found
        if found != len(expected):
            yield Finding("audio", file.name, f"{found} clips, the index has {len(expected)} rows")

    def _rows(self, shard: Shard, record: CommitRecord, index: pa.Table, failures: pa.Table) -> Iterator[Finding]:
        """Whether each manifest row of the shard is there once, as itself."""
        where = f"shard {shard.index}"
        urls, numbers = self._ledger.plan.manifest.origins(shard.spans)
        places = {place: at for at, place in enumerate(zip(urls, numbers.tolist(), strict=True))}
        failed = [
            places.get(place) for place in zip(*(failures[c].to_pylist() for c in ("manifest", "row")), strict=True)
        ]
        if ids_digest(_ids(shard.rows, index["id"], failures["id"], failed)) != record.ids:
            yield Finding("ids", where, "the ids of its rows, made and failed, are not those that were committed")
        try:
            table = self._ledger.plan.manifest.read(shard.spans, self._options)
        except (InputError, StorageError) as error:
            note = f"rows were not held against the manifest: {error}"
            if note not in self._result.notes:
                self._result.notes.append(note)
            return
        if ids_digest(table["id"]) != record.ids:
            yield Finding("ids", where, "the ids that were committed are not those of the manifest's rows")
        rows, unusable = check_rows(table, job_seed=self._config["seed"], max_tokens=self._config["max_tokens"])
        yield from _match_rows(where, rows, unusable, failed, index)

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
            same = self._take(part.num_rows).equals(part)
        except (pa.ArrowException, ValueError, KeyError) as error:
            same, self._problem = False, str(error)
        if not same:
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
        return read_parquet(contents.pop(file.name)).select(schema.names).cast(schema)
    except (pa.ArrowException, OSError, ValueError, KeyError) as error:
        yield Finding("unreadable_file", file.name, f"{type(error).__name__}: {error}")
        return schema.empty_table()


def _check_counts(record: CommitRecord, index: pa.Table, failures: pa.Table) -> Iterator[Finding]:
    where = f"shard {record.shard}"
    for what, rows, stated in (
        ("index", index.num_rows, record.rows_done),
        ("failures", failures.num_rows, record.rows_failed),
    ):
        if rows != stated:
            yield Finding(what, where, f"{rows} rows in this part, the record says {stated}")
    samples = sum(index["samples"].to_pylist())
    if samples != record.samples:
        yield Finding("index", where, f"{samples} samples in the index, the record says {record.samples}")
    shards = set(index["shard"].to_pylist())
    if record.audio is not None and shards - {record.audio.name}:
        yield Finding("index", where, f"the index names {sorted(shards)}, the record {record.audio.name}")


def _check_measures(record: CommitRecord, index: pa.Table, config: JobConfig) -> Iterator[Finding]:
    for entry in index.to_pylist():
        wrong = inconsistency(entry, config)
        if wrong is not None:
            yield Finding("index", f"shard {record.shard}", f"{entry['id']!r}: {wrong}")


def _clips(name: str, data: bytes) -> Iterator[tuple[str, bytes]]:
    """Id and stored audio of each row of a shard file."""
    if name.endswith(".parquet"):
        for batch in pq.ParquetFile(pa.BufferReader(data)).iter_batches(
            batch_size=64, columns=["id", "audio"], use_threads=False
        ):
            for row in batch.to_pylist():
                yield row["id"], row["audio"]["bytes"]
        return
    with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as tar:
        clip: tuple[str, bytes] | None = None
        for member in tar:
            key, _, suffix = member.name.partition(".")
            content = tar.extractfile(member)
            if content is None:
                raise ValueError(f"{member.name} is not a file")
            if suffix != "json":
                clip = (key, content.read())
            elif clip is None or clip[0] != key:
                raise ValueError(f"{member.name} does not follow its audio")
            else:
                yield json.load(content)["id"], clip[1]
                clip = None
        if clip is not None:
            raise ValueError(f"{clip[0]} has no json")


def _check_clip(name: str, at: int, row_id: str, clip: bytes, entry: dict[str, Any]) -> Iterator[Finding]:
    # Lazily: status and plan need no audio library.
    import soundfile

    where = f"{name} row {at}"
    if (row_id, at) != (entry["id"], entry["row"]):
        yield Finding("index", where, f"holds {row_id!r}, the index says {entry['id']!r} in row {entry['row']}")
    if hashlib.sha256(clip).hexdigest() != entry["sha256"]:
        yield Finding("audio", where, f"{row_id!r}: the sha256 of its audio is not the index's")
    samples: int = entry["samples"]
    if entry["duration"] != samples / SAMPLE_RATE:
        yield Finding("index", where, f"{row_id!r}: {samples} samples, but a duration of {entry['duration']} s")
    try:
        wave, rate = soundfile.read(io.BytesIO(clip), dtype="float32", always_2d=True)
    except (soundfile.SoundFileError, OSError, ValueError) as error:
        yield Finding("audio", where, f"{row_id!r} does not decode: {error}")
        return
    if rate != SAMPLE_RATE or wave.shape != (samples, 1):
        stored = f"{wave.shape[0]} samples of {wave.shape[1]} channels at {rate} Hz"
        yield Finding("length", where, f"{row_id!r}: {stored}, the index says {samples} at {SAMPLE_RATE} Hz")


def _match_rows(
    where: str, rows: list[Row], unusable: list[Failure], failed: list[int | None], index: pa.Table
) -> Iterator[Finding]:
    known = Counter(at for at in failed if at is not None)
    if None in failed:
        yield Finding("row_unknown", where, f"{failed.count(None)} failures are of rows that the plan puts elsewhere")
    for at, times in known.items():
        if times > 1:
            yield Finding("row_twice", where, f"row {at} of the shard is in the failures {times} times")
    for failure in unusable:
        if failure.position not in known:
            yield Finding("row_missing", where, f"{failure.id!r} ({failure.error}) is not in the failures")
    made = {row.id: row for row in rows if row.position not in known}
    seen: Counter[str] = Counter()
    for entry in index.select(["id", "voice_id", "samples"]).to_pylist():
        seen[entry["id"]] += 1
        row = made.get(entry["id"])
        if row is None:
            yield Finding("row_unknown", where, f"{entry['id']!r} is in the index, but is no row to be made here")
        elif entry["voice_id"] != row.voice_id:
            yield Finding("index", where, f"{row.id!r} has the voice {entry['voice_id']!r}, not {row.voice_id!r}")
        elif entry["samples"] != SAMPLES_PER_TOKEN * len(row.tokens):
            wanted = SAMPLES_PER_TOKEN * len(row.tokens)
            yield Finding("length", where, f"{row.id!r} has {entry['samples']} samples, its tokens make {wanted}")
    for row_id in made:
        if not seen[row_id]:
            yield Finding("row_missing", where, f"{row_id!r} was neither made nor failed")
        elif seen[row_id] > 1:
            yield Finding("row_twice", where, f"{row_id!r} is in the index {seen[row_id]} times")
