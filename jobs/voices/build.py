"""A voice table built: its sources cut into parts, and the parts, once all are made, merged to one sorted table.

The sources, sorted by id, are cut into parts (`jobs.voices.parts`), which a second run does not make again. The table
is the parts in their order (merged with the rows of the table that is appended to), written once all are there.
"""

from __future__ import annotations

import contextlib
import hashlib
import heapq
import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from jobs.errors import InputError
from jobs.manifest.texts import shown
from jobs.parquet.reader import read_parquet
from jobs.storage.faults import as_input
from jobs.storage.folders import Folder
from jobs.storage.urls import Options, absolute_url, is_url
from jobs.voices.clip_settings import chosen_settings
from jobs.voices.parts import FAILURE_SCHEMA, Part, PartReport
from jobs.voices.sources import Source, VoiceFailure
from jobs.voices.table import METADATA_KEY, ROW_GROUP_VOICES, SCHEMA, VOICE_COLUMNS, VoiceTable

PART_VOICES = 256
DIGEST_KEY = "s3gen_voices_digest"


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
        self,
        url: str,
        options: Options | None,
        *,
        voice_fingerprint: str,
        max_seconds: float | None,
        loudness: float | None = None,
        append: bool,
    ) -> None:
        """Args as for `s3gen voices`; on `append` None is the table's own, else 10 s, and any loudness.

        Raises:
            InputError: `append` to a table that other model parts made, or with another `max_seconds` or `loudness`.
        """
        self.url = absolute_url(url)
        self.parts_url = f"{self.url}.parts"
        self._options = options
        folder, _, self._name = self.url.rpartition("/")
        self._folder = Folder(folder or "/", options)
        with as_input("--out"):
            there = self._folder.exists(self._name)
        self._old = VoiceTable.open(self.url, options) if append and there else None
        self._replaces = there and not append
        if self._old is not None:
            self._old.check_model(voice_fingerprint)
        clips = chosen_settings(max_seconds, loudness, self._old)
        self.max_seconds, self.loudness = clips.max_seconds, clips.loudness
        self._settings = clips.stored(voice_fingerprint)

    def parts(self, sources: Sequence[Source]) -> list[Part]:
        """The parts of the sources, which are sorted by voice id.

        Raises:
            InputError: the table is there, is not appended to, and has voices that are not among them.
        """
        if self._replaces:
            self._refuse_loss({source.voice_id for source in sources})
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

    def _refuse_loss(self, given: Set[str]) -> None:
        """What was meant for another table, or lacks --append, would cost voices, and jobs begun with them."""
        try:
            there = VoiceTable.open(self.url, self._options).rows(["voice_id"])
            lost = [name for batch in there for name in batch["voice_id"].to_pylist() if name not in given]
        except InputError as error:
            raise InputError(
                f"--out {self.url} is there already and is not replaced, since it cannot be read ({error}); choose "
                "another place, or delete it"
            ) from None
        if lost:
            raise InputError(
                f"--out {self.url} is there already, and INPUT lacks {len(lost)} of its voices, such as "
                f"{shown(lost[0])}, which would be lost; add to it with --append, choose another place, or delete it"
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
