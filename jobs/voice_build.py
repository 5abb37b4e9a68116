"""Voice tables, the building side: clips in, one sorted table out, in parts that a second run does not make again.

The sources, sorted by id, are cut into parts. A part is named by the digest of all that decides its content, and is one
Parquet file: voices and failures together, so that it is there whole or not at all. The table is the parts in their
order (merged with the rows of the table that is appended to), written once all are there.

A part's clips go to the model in groups, each read while the one before is computed. Which clips share a group, and so
the last bits of their voices, follows from the part alone.
"""

from __future__ import annotations

import contextlib
import hashlib
import heapq
import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from jobs.audiofile import Samples, read_audio
from jobs.batch import trouble_of
from jobs.errors import InputError, Refused
from jobs.inputs import stat_input
from jobs.models import open_model
from jobs.parquet import read_parquet
from jobs.pulse import Pulse
from jobs.recordings import Rejected, check_values, opened
from jobs.storage import Folder
from jobs.transfer import Fetch
from jobs.urls import Options, absolute_url, is_url
from jobs.voice_sources import Source, VoiceFailure
from jobs.voices import FORMAT_VERSION, METADATA_KEY, ROW_GROUP_VOICES, SCHEMA, VOICE_COLUMNS, VoiceTable
from s3gen import S3GenModel
from s3gen.constants import MEL_BINS
from s3gen.voice import RefDict, Voice

PART_VOICES = 256
MAX_SECONDS = 10.0  # of a clip; the reference tools use no more either
MIN_SECONDS = 0.5
MOST_SECONDS = 600.0  # that --max-seconds may ask for: clips are in memory as a whole
SILENCE = 1e-3  # peak, of full scale: -60 dB
HASH_BLOCK = 1 << 20  # bytes
GROUP_VOICES = 64  # clips that are in memory together, next to as many that are read ahead ...
GROUP_SECONDS = GROUP_VOICES * MAX_SECONDS  # ... fewer when they may be longer than usual
READERS = 8  # threads
VOICE_PARTS = ("prompt_token", "prompt_feat", "embedding")

Row = dict[str, Any]

DIGEST_KEY = "s3gen_voices_digest"
FAILURE_SCHEMA = pa.schema([(name, pa.string()) for name in ("voice_id", "source", "error", "message")])
PART_SCHEMA = pa.schema([*SCHEMA, FAILURE_SCHEMA.field("error"), FAILURE_SCHEMA.field("message")])


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """A run of sources that is made and committed together.

    Attributes:
        known: source digests of those of the ids that the table already has.
    """

    sources: tuple[Source, ...]
    known: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class PartReport:
    """What became of a part."""

    name: str  # of its file in the folder of parts
    voices: int
    failed: int
    kept: int  # that the table already has, from the same bytes
    seconds: float  # of audio that was used


class VoiceMaker:
    """Makes the parts of one table; a plain class that a worker holds.

    Attributes:
        pulse: moves on with each group of clips.
    """

    def __init__(
        self, model: S3GenModel, parts: Folder, *, max_seconds: float = MAX_SECONDS, options: Options | None = None
    ) -> None:
        self.pulse = Pulse()
        self._model = model
        self._parts = parts
        self._max_seconds = max_seconds
        self._options = options
        self._settings = settings_of(model.voice_fingerprint(), max_seconds)
        self._copies = torch.cuda.Stream(model.device) if model.device.type == "cuda" else None

    @classmethod
    def open(
        cls, *, model: str, model_file: str | None, parts: str, max_seconds: float, options: Options, threads: int
    ) -> VoiceMaker:
        """Loads the model, onto a GPU where this process sees one."""
        torch.set_num_threads(threads)
        device = "cuda" if torch.cuda.is_available() else "cpu"
        loaded = open_model(model, model_file, device, options)
        return cls(loaded, Folder(parts, options), max_seconds=max_seconds, options=options)

    def run(self, part: Part) -> PartReport:
        """Makes and commits the part, unless it is there."""
        name = self._name(part)
        if not self._parts.exists(name):
            rows = list(self._rows(part))
            with tempfile.TemporaryDirectory(prefix="s3gen-") as folder:
                path = Path(folder) / name
                pq.write_table(pa.Table.from_pylist(rows, schema=PART_SCHEMA), path, compression="zstd")
                self._parts.upload(name, path)
        return _report(self._parts, name, len(part.sources))

    def _name(self, part: Part) -> str:
        content = hashlib.sha256(json.dumps([self._settings, sorted(part.known.items())]).encode())
        with ThreadPoolExecutor(READERS) as readers:
            versions = readers.map(self._version, part.sources)
            for source, version in zip(part.sources, versions, strict=True):
                content.update(json.dumps([source.voice_id, source.url, *version]).encode())
        return f"{content.hexdigest()}.parquet"

    def _version(self, source: Source) -> tuple[int, str]:
        try:
            stat = stat_input(source.url, self._options)
        except (FileNotFoundError, Refused, InputError):
            return (-1, "absent")
        return (stat.size, stat.etag)

    def _rows(self, part: Part) -> Iterator[Row]:
        """The part's rows in its order, but for voices that the table already has from the same bytes."""
        size = max(1, min(GROUP_VOICES, int(GROUP_SECONDS / self._max_seconds)))
        groups = [part.sources[start : start + size] for start in range(0, len(part.sources), size)]
        with ThreadPoolExecutor(READERS) as readers:

            def submit(group: Sequence[Source]) -> list[Future[Row | _Clip | None]]:
                return [readers.submit(self._read, source, part.known) for source in group]

            ahead = submit(groups[0])
            before: _Embedded | None = None
            for following in [*groups[1:], ()]:
                group = [future.result() for future in ahead]
                ahead = submit(following)
                embedded = self._embed([entry for entry in group if entry is not None])
                # A GPU has the next group's work before its results of this one are waited for.
                if before is not None:
                    yield from before.rows()
                    self.pulse.beat()
                before = embedded
            if before is not None:
                yield from before.rows()

    def _read(self, source: Source, known: Mapping[str, str]) -> Row | _Clip | None:
        """A clip, or the row that says why there is none; None for what the table already has from the same bytes."""
        row: Row = {"voice_id": source.voice_id, "source": source.url}
        try:
            digest, samples, rate = _read_clip(source.url, self._options, self._max_seconds)
            if source.voice_id in known:
                if known[source.voice_id] == digest:
                    return None
                raise Rejected("voice_exists", "the table has this voice_id from another clip; choose another id")
            _check_clip(samples, rate)
        except Rejected as rejection:
            return row | {"error": rejection.code, "message": str(rejection)}
        return _Clip(row=row, digest=digest, samples=samples, rate=rate)

    def _embed(self, group: Sequence[Row | _Clip]) -> _Embedded:
        refs = iter(self._refs([entry for entry in group if isinstance(entry, _Clip)]))
        entries: list[Row | _Found] = []
        tensors: list[torch.Tensor] = []
        for entry in group:
            if not isinstance(entry, _Clip):
                entries.append(entry)
            elif isinstance(ref := next(refs), str):
                entries.append(entry.row | {"error": "not_embedded", "message": ref})
            else:
                entries.append(_Found.of(entry))
                # Tokens too are exact in the mel's type, and all go to the host in one piece.
                tensors += [ref[name].flatten().to(ref["prompt_feat"].dtype) for name in VOICE_PARTS]
        return _Embedded(entries, Fetch(tensors, self._copies) if tensors else None)

    def _refs(self, clips: Sequence[_Clip]) -> list[RefDict | str]:
        """For each clip what the model finds in it, or what it says against it.

        In halves, where they are too much together or one of them is refused.
        """
        try:
            return list(self._model.embed_refs([clip.samples for clip in clips], [clip.rate for clip in clips]))
        except ValueError as error:
            if len(clips) == 1:
                return [str(error)]
        except (RuntimeError, MemoryError) as error:
            if len(clips) == 1 or not trouble_of(error).starved:
                raise
        # Outside of the handlers: the exception's traceback holds the tensors of the failed attempt.
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        middle = (len(clips) + 1) // 2
        return self._refs(clips[:middle]) + self._refs(clips[middle:])


@dataclass(frozen=True, kw_only=True, slots=True)
class BuildReport:
    """What a build made.

    Attributes:
        voices: made now.
        kept: that the table already had, from the same bytes.
        total: in the table.
        seconds: of audio that was used for those made now.
        failures: one per entry that did not become a voice.
    """

    url: str
    failures_url: str
    voices: int
    kept: int
    total: int
    seconds: float
    failures: list[VoiceFailure]


class VoiceBuild:
    """One build of one table: cuts the parts, and when they are made, writes the table."""

    def __init__(
        self, url: str, options: Options | None, *, voice_fingerprint: str, max_seconds: float | None, append: bool
    ) -> None:
        """Args as for `s3gen voices`; `max_seconds` None is the table's own on `append`, else 10 s.

        Raises:
            InputError: `append` to a table that other model parts made, or with another `max_seconds`.
        """
        self.url = absolute_url(url)
        self.parts_url = f"{self.url}.parts"
        self._options = options
        folder, _, self._name = self.url.rpartition("/")
        self._folder = Folder(folder or "/", options)
        exists = append and self._folder.exists(self._name)
        self._old = VoiceTable.open(self.url, options) if exists else None
        self.max_seconds = MAX_SECONDS if max_seconds is None else max_seconds
        if self._old is not None:
            self._old.check_model(voice_fingerprint)
            self.max_seconds = self._old.max_seconds if max_seconds is None else max_seconds
            if self.max_seconds != self._old.max_seconds:
                raise InputError(
                    f"--max-seconds {max_seconds:g}: the clips of {self.url} were cut at {self._old.max_seconds:g} s; "
                    "leave the option out, or make a table of its own"
                )
        if not self.max_seconds >= MIN_SECONDS:
            raise InputError(f"--max-seconds {self.max_seconds:g}: {MIN_SECONDS:g} is the least a voice needs")
        if self.max_seconds > MOST_SECONDS:
            raise InputError(f"--max-seconds {self.max_seconds:g}: {MOST_SECONDS:g} is the most; 10 are enough")
        self._settings = settings_of(voice_fingerprint, self.max_seconds)

    def parts(self, sources: Sequence[Source]) -> list[Part]:
        """The parts of the sources, which are sorted by voice id."""
        known = self._known()
        cut = [tuple(sources[start : start + PART_VOICES]) for start in range(0, len(sources), PART_VOICES)]
        return [
            Part(sources=part, known={s.voice_id: known[s.voice_id] for s in part if s.voice_id in known})
            for part in cut
        ]

    def finish(self, reports: Sequence[PartReport], failures: Sequence[VoiceFailure]) -> BuildReport:
        """Writes the table and the list of failures, then removes the parts.

        Args:
            reports: one per part, in the order of `parts`.
            failures: entries that never came into a part.
        """
        parts = Folder(self.parts_url, self._options)
        names = [report.name for report in reports]
        everything = [*failures, *_part_failures(parts, names)]
        with tempfile.TemporaryDirectory(prefix="s3gen-") as scratch:
            path = Path(scratch) / "voices.parquet"
            total = _write_table(path, self._settings, heapq.merge(_old_rows(self._old), _part_rows(parts, names)))
            self._folder.upload(self._name, path)
            table = pa.Table.from_pylist([_failure_row(f) for f in everything], schema=FAILURE_SCHEMA)
            pq.write_table(table, path)
            self._folder.upload(f"{self._name}.failures.parquet", path)
        self._remove(parts)
        return BuildReport(
            url=self.url,
            failures_url=f"{self.url}.failures.parquet",
            voices=sum(report.voices for report in reports),
            kept=sum(report.kept for report in reports),
            total=total,
            seconds=sum(report.seconds for report in reports),
            failures=everything,
        )

    def _remove(self, parts: Folder) -> None:
        for name in parts.list():
            parts.delete(name)
        if not is_url(self.parts_url):
            with contextlib.suppress(OSError):  # there was none, or something else lies in it
                Path(self.parts_url).rmdir()

    def _known(self) -> dict[str, str]:
        if self._old is None:
            return {}
        batches = self._old.rows(["voice_id", "source_digest"])
        return {
            voice_id: digest
            for batch in batches
            for voice_id, digest in zip(*(column.to_pylist() for column in batch.columns), strict=True)
        }


def settings_of(voice_fingerprint: str, max_seconds: float) -> dict[str, Any]:
    """What decides a voice beside its clip; kept in the table's schema."""
    return {"format_version": FORMAT_VERSION, "voice_fingerprint": voice_fingerprint, "max_seconds": max_seconds}


@dataclass(frozen=True, kw_only=True, slots=True)
class _Clip:
    """A clip that is good as far as one can see.

    Attributes:
        row: the columns of its row that a failure has too.
        digest: of the source.
        rate: of the samples, Hz.
    """

    row: Row
    digest: str
    samples: Samples
    rate: int


@dataclass(frozen=True, kw_only=True, slots=True)
class _Found:
    """A clip in which the model found a voice; its samples are gone."""

    row: Row
    facts: Row

    @classmethod
    def of(cls, clip: _Clip) -> _Found:
        facts = {"source_digest": clip.digest, "duration": len(clip.samples) / clip.rate, "sample_rate": clip.rate}
        return cls(row=clip.row, facts=facts)

    def with_voice(self, ref: Mapping[str, Samples]) -> Row:
        """The whole row."""
        try:
            voice = Voice.from_ref(
                {
                    "prompt_token": ref["prompt_token"].astype(np.int64),
                    "prompt_feat": ref["prompt_feat"].reshape(-1, MEL_BINS),
                    "embedding": ref["embedding"],
                }
            )
        except ValueError as error:
            return self.row | {"error": "not_embedded", "message": str(error)}
        return {
            **self.row,
            **self.facts,
            "prompt_token": voice.prompt_token.numpy().astype(np.int32),
            "prompt_feat": voice.prompt_feat.numpy().reshape(-1),
            "embedding": voice.embedding.numpy(),
            "tokens": len(voice.prompt_token),
            "frames": len(voice.prompt_feat),
        }


@dataclass(frozen=True, slots=True)
class _Embedded:
    """A group of which each clip is found or failed, and what was found is on its way from the device."""

    entries: list[Row | _Found]
    fetch: Fetch | None

    def rows(self) -> Iterator[Row]:
        """The group's rows, once they are here."""
        arrays = iter(self.fetch.take() if self.fetch is not None else ())
        for entry in self.entries:
            if isinstance(entry, _Found):
                yield entry.with_voice({name: next(arrays) for name in VOICE_PARTS})
            else:
                yield entry


def _read_clip(url: str, options: Options | None, seconds: float) -> tuple[str, Samples, int]:
    with opened(url, options) as file:
        digest = hashlib.sha256()
        while block := file.read(HASH_BLOCK):
            digest.update(block)
        file.seek(0)
        samples, rate = read_audio(file, seconds)
    return digest.hexdigest(), samples, rate


def _check_clip(samples: Samples, rate: int) -> None:
    if len(samples) < MIN_SECONDS * rate:
        raise Rejected("too_short", f"{len(samples) / rate:.3f} s; {MIN_SECONDS} s is the least")
    check_values(samples, rate)
    if (peak := float(np.abs(samples).max())) < SILENCE:
        raise Rejected("silent", f"the loudest sample is {peak:.2g} of full scale")


def _report(parts: Folder, name: str, sources: int) -> PartReport:
    with parts.open(name) as file:
        rows = read_parquet(file, ["duration", "error"])
    durations = [value for value in rows.column("duration").to_pylist() if value is not None]
    return PartReport(
        name=name,
        voices=len(durations),
        failed=len(rows) - len(durations),
        kept=sources - len(rows),
        seconds=sum(durations),
    )


# A row to be merged: its voice id, a tie-breaker that is never needed, and a table of that one row.
_Keyed = tuple[str, int, pa.Table]


def _old_rows(table: VoiceTable | None) -> Iterator[_Keyed]:
    for batch in table.rows(SCHEMA.names) if table is not None else ():
        yield from _keyed(pa.Table.from_batches([batch]), 0)


def _part_rows(parts: Folder, names: Sequence[str]) -> Iterator[_Keyed]:
    for name in names:
        with parts.open(name) as file:
            rows = read_parquet(file)
        made = rows.filter(rows.column("error").is_null())
        yield from _keyed(made.select(SCHEMA.names), 1)


def _keyed(rows: pa.Table, order: int) -> Iterator[_Keyed]:
    rows = pa.table(rows.columns, schema=SCHEMA)
    for row, voice_id in enumerate(rows.column("voice_id").to_pylist()):
        yield voice_id, order, rows.slice(row, 1)


def _part_failures(parts: Folder, names: Sequence[str]) -> list[VoiceFailure]:
    failures: list[VoiceFailure] = []
    for name in names:
        with parts.open(name) as file:
            rows = read_parquet(file, FAILURE_SCHEMA.names).to_pylist()
        failures += [VoiceFailure(**row) for row in rows if row["error"] is not None]
    return failures


def _failure_row(failure: VoiceFailure) -> dict[str, str | None]:
    return {name: getattr(failure, name) for name in FAILURE_SCHEMA.names}


def _write_table(path: Path, settings: Mapping[str, Any], rows: Iterator[_Keyed]) -> int:
    """Writes sorted rows in small row groups; returns how many. Only the ids get statistics: the footer stays small."""
    schema = SCHEMA.with_metadata({METADATA_KEY: json.dumps(settings).encode()})
    digest = hashlib.sha256()
    total = 0
    options = {"compression": "zstd", "use_dictionary": False, "write_statistics": ["voice_id"]}
    with pq.ParquetWriter(path, schema, **options) as writer:
        while group := [row for _, (_, _, row) in zip(range(ROW_GROUP_VOICES), rows, strict=False)]:
            table = pa.concat_tables(group)
            _digest_rows(digest, table)
            writer.write_table(table, row_group_size=ROW_GROUP_VOICES)
            total += len(table)
        writer.add_key_value_metadata({DIGEST_KEY: digest.hexdigest()})
    return total


def _digest_rows(digest: Any, table: pa.Table) -> None:
    for row in range(len(table)):
        voice_id = table.column("voice_id")[row].as_py().encode()
        values = [table.column(name)[row].values.to_numpy().tobytes() for name in VOICE_COLUMNS[1:]]
        for value in (voice_id, *values):
            # With its length: no two rows give one stream of bytes.
            digest.update(len(value).to_bytes(8, "little") + value)
