"""Shards of audio, held against their part of the index and against the manifest."""

from __future__ import annotations

import hashlib
import io
import tarfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa

from jobs.config.config import JobConfig, WaveConfig, config_from
from jobs.errors import InputError, StorageError
from jobs.formats.lhotse_shar import cut
from jobs.formats.stored_clips import Clip, shar_clips, stored_clips
from jobs.ledger.ledger import Ledger
from jobs.ledger.records import CommitRecord, StoredFile, ids_digest
from jobs.manifest.rows import Failure, Row, job_rows
from jobs.measures.checks import inconsistency
from jobs.plan import Shard
from jobs.storage.urls import Options
from jobs.verify.findings import Finding, Verification
from s3gen.constants import TOKEN_RATE, exact_div


class AudioContents:
    """What the shards of a job of speech hold.

    Args:
        options: storage options, for the manifest.
        result: gets the number of clips, and notes.
    """

    def __init__(self, ledger: Ledger, options: Options | None, result: Verification) -> None:
        self._plan, self._options, self._result = ledger.plan, options, result
        self._config = config_from(ledger.job["config"])
        self._rate = self._config.wave.sample_rate

    def samples(self, index: pa.Table) -> int:
        """Of a shard's part of the index, what its record counts: samples at the model's rate."""
        return sum(map(self._config.wave.made, index["samples"].to_pylist()))

    def check(
        self, record: CommitRecord, index: pa.Table, failed: Sequence[int | None], contents: Mapping[str, bytes]
    ) -> Iterator[Finding]:
        """Everything about one shard that is not known from its record and tables alone.

        Args:
            failed: the positions in the shard of the rows of its part of the failures; None where it has no such row.
            contents: its files by name, as far as they could be read.
        """
        shards = set(index["shard"].to_pylist())
        if record.audio is not None and shards - {record.audio.name}:
            message = f"the index names {sorted(shards)}, the record {record.audio.name}"
            yield Finding("index", f"shard {record.shard}", message)
        yield from _check_measures(record, index, self._config)
        if (record.cuts is None) != (record.audio is None or self._config.format != "lhotse"):
            yield Finding(
                "record", f"shard {record.shard}", f"its files are not those of the format {self._config.format}"
            )
        elif record.audio is not None and all(file.name in contents for file in (record.audio, record.cuts) if file):
            cuts = None if record.cuts is None else contents[record.cuts.name]
            yield from self._clips(record.audio, contents[record.audio.name], cuts, index)
        yield from self._rows(self._plan.shard(record.shard), record, index, failed)

    def _clips(self, file: StoredFile, data: bytes, cuts: bytes | None, index: pa.Table) -> Iterator[Finding]:
        expected = index.to_pylist()
        found = 0
        try:
            for clip in stored_clips(file.name, data) if cuts is None else shar_clips(data, cuts):
                if found < len(expected):
                    yield from _check_clip(f"{file.name} row {found}", found, clip, expected[found], self._rate)
                found += 1
        except (pa.ArrowException, OSError, tarfile.TarError, ValueError, KeyError) as error:
            yield Finding("unreadable_file", file.name, f"after {found} clips: {type(error).__name__}: {error}")
            return
        self._result.rows_checked += found
        if found != len(expected):
            yield Finding("audio", file.name, f"{found} clips, the index has {len(expected)} rows")

    def _rows(
        self, shard: Shard, record: CommitRecord, index: pa.Table, failed: Sequence[int | None]
    ) -> Iterator[Finding]:
        """Whether each manifest row of the shard is there once, as itself."""
        where = f"shard {shard.index}"
        try:
            table = self._plan.manifest.read(shard.spans, self._options)
        except (InputError, StorageError) as error:
            self._result.note(f"rows were not held against the manifest: {error}")
            return
        if ids_digest(table["id"]) != record.ids:
            yield Finding("ids", where, "the ids that were committed are not those of the manifest's rows")
        rows, unusable = job_rows(table, self._config)
        yield from _match_rows(where, rows, unusable, failed, index, self._config)


def _check_measures(record: CommitRecord, index: pa.Table, config: JobConfig) -> Iterator[Finding]:
    for entry in index.to_pylist():
        wrong = inconsistency(entry, config)
        if wrong is not None:
            yield Finding("index", f"shard {record.shard}", f"{entry['id']!r}: {wrong}")


def _check_clip(where: str, at: int, clip: Clip, entry: dict[str, Any], rate: int) -> Iterator[Finding]:
    # Lazily: status and plan need no audio library.
    import soundfile

    row_id, samples = clip.id, entry["samples"]
    if (row_id, at) != (entry["id"], entry["row"]):
        yield Finding("index", where, f"holds {row_id!r}, the index says {entry['id']!r} in row {entry['row']}")
    if hashlib.sha256(clip.data).hexdigest() != entry["sha256"]:
        yield Finding("audio", where, f"{row_id!r}: the sha256 of its audio is not the index's")
    if entry["duration"] != samples / rate:
        yield Finding("index", where, f"{row_id!r}: {samples} samples, but a duration of {entry['duration']} s")
    if clip.cut not in (None, cut({"id": row_id, "voice_id": entry["voice_id"]}, samples, rate)):
        yield Finding("index", where, f"{row_id!r}: its cut does not say what the index says")
    try:
        wave, stored_rate = soundfile.read(io.BytesIO(clip.data), dtype="float32", always_2d=True)
    except (soundfile.SoundFileError, OSError, ValueError) as error:
        yield Finding("audio", where, f"{row_id!r} does not decode: {error}")
        return
    if stored_rate != rate or wave.shape != (samples, 1):
        stored = f"{wave.shape[0]} samples of {wave.shape[1]} channels at {stored_rate} Hz"
        yield Finding("length", where, f"{row_id!r}: {stored}, the index says {samples} at {rate} Hz")


def _match_rows(
    where: str,
    rows: list[Row],
    unusable: list[Failure],
    failed: Sequence[int | None],
    index: pa.Table,
    config: JobConfig,
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
    for entry in index.select(["id", "voice_id", "samples", "trimmed_start", "trimmed_end", "cuts"]).to_pylist():
        seen[entry["id"]] += 1
        row = made.get(entry["id"])
        if row is None:
            yield Finding("row_unknown", where, f"{entry['id']!r} is in the index, but is no row to be made here")
        elif entry["voice_id"] != row.voice_id:
            yield Finding("index", where, f"{row.id!r} has the voice {entry['voice_id']!r}, not {row.voice_id!r}")
        elif (wrong := _wrong_length(entry, row, config.wave)) is not None:
            yield Finding("length", where, f"{row.id!r} {wrong}")
        elif entry["cuts"] != list(row.cuts):
            yield Finding("index", where, f"{row.id!r} was cut at {entry['cuts']}, the job cuts it at {list(row.cuts)}")
    for row_id in made:
        if not seen[row_id]:
            yield Finding("row_missing", where, f"{row_id!r} was neither made nor failed")
        elif seen[row_id] > 1:
            yield Finding("row_twice", where, f"{row_id!r} is in the index {seen[row_id]} times")


def _wrong_length(entry: Mapping[str, Any], row: Row, config: WaveConfig) -> str | None:
    """What is wrong with the length that the index has of a row: what was made is stored or trimmed, to the sample."""
    made = exact_div(config.sample_rate, TOKEN_RATE) * len(row.tokens)
    kept, start, end = entry["samples"], entry["trimmed_start"], entry["trimmed_end"]
    if min(start, end) < 0 or (config.trim_db is None and (start or end)):
        return f"was trimmed by {start} and {end} samples, as the job would not"
    if start + kept + end != made:
        trimmed = f" and {start + end} that were trimmed" if start or end else ""
        return f"has {kept} samples{trimmed}, its tokens make {made}"
    return None
