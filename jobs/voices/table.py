"""Voice tables, the reading side: one Parquet file of reference voices, sorted by `voice_id`.

Small row groups and their minimum and maximum ids make the file its own index: opening reads the footer alone, and a
voice costs a binary search over it and one row group. What is held in memory is bounded, however large the table is.

Shape letters: P prompt tokens, F prompt frames (2 x P), M mel bins.
"""

from __future__ import annotations

import json
import os
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from itertools import pairwise
from operator import attrgetter
from typing import IO, Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from jobs.errors import InputError, JobError
from jobs.parquet.footer import Footer, Group, footer_bytes
from jobs.parquet.pages import rows_at_once
from jobs.storage.faults import as_input
from jobs.storage.inputs import open_input
from jobs.storage.urls import Options, absolute_url
from s3gen.constants import MEL_BINS, SPEAKER_DIM
from s3gen.voice import Voice

FORMAT_VERSION = 1
METADATA_KEY = b"s3gen_voices"
ROW_GROUP_VOICES = 16
CACHED_VOICES = 1024  # some 160 KB each at 10 s of prompt

VOICE_COLUMNS = ("voice_id", "prompt_token", "prompt_feat", "embedding")
SCHEMA = pa.schema(
    [
        pa.field("voice_id", pa.string(), nullable=False),
        pa.field("prompt_token", pa.list_(pa.int32())),  # P
        pa.field("prompt_feat", pa.list_(pa.float32())),  # F x M, frame after frame
        pa.field("embedding", pa.list_(pa.float32())),
        pa.field("tokens", pa.int32()),  # P
        pa.field("frames", pa.int32()),  # F
        pa.field("duration", pa.float64()),  # seconds of the clip that were used
        pa.field("sample_rate", pa.int32()),  # Hz, of the clip
        pa.field("source", pa.string()),  # path or URL of the clip
        pa.field("source_digest", pa.string()),  # sha256 of the clip's bytes
    ]
)


class _Bounds(NamedTuple):
    """The first and the last id of a row group, and where it is in the footer."""

    first: str
    last: str
    at: int


class VoiceTable:
    """A voice table open for reading.

    Attributes:
        url: where it is.
        voices: how many it holds.
        voice_fingerprint: of the model parts that made it.
        max_seconds: where clips were cut.
        loudness: to which they were brought, LUFS; None: to none.
        digest: hex sha256 over ids, tokens, mels and vectors: equal tables have equal digests wherever they are.
    """

    def __init__(self, url: str, file: IO[bytes], cached_voices: int) -> None:
        self.url = url
        self._file = file
        try:
            self._parquet = pq.ParquetFile(file)
            settings = _settings(url, self._parquet.schema_arrow)
            self._footer = Footer(footer_bytes(file))
            self._groups = [self._bounds(number, group) for number, group in enumerate(self._footer.groups())]
        except JobError:
            raise
        except Exception as error:  # a damaged or hostile footer can make the reader raise anything
            raise InputError(f"voices: {url} is not a voice table: {error}; make one with `s3gen voices`") from None
        self.voice_fingerprint: str = settings["voice_fingerprint"]
        self.max_seconds: float = settings["max_seconds"]
        self.loudness: float | None = settings.get("loudness")
        self.digest: str = self._footer_digest()
        self.voices: int = self._footer.rows
        self._check_order()
        self._cache: OrderedDict[str, Voice] = OrderedDict()
        self._cached_voices = cached_voices

    @classmethod
    def open(cls, url: str, options: Options | None = None, *, cached_voices: int = CACHED_VOICES) -> VoiceTable:
        """Reads the footer.

        Raises:
            InputError: no such file, not a voice table of this version, or nobody may read it.
            StorageError: its store does not answer.
        """
        with as_input("voices"):
            url = absolute_url(url)
            if os.path.isdir(url):
                raise InputError(f"voices: {url} is a folder; give the table's file")
            try:
                file = open_input(url, options)
            except FileNotFoundError:
                raise InputError(f"voices: no such file: {url}; make it with `s3gen voices`") from None
            return cls(url, file, cached_voices)

    @property
    def fingerprints(self) -> dict[str, str]:
        """What a job is bound to, of its voices."""
        loudness = {} if self.loudness is None else {"voices_loudness": f"{self.loudness:g} LUFS"}
        return {"voices": self.digest, **loudness}

    def check_model(self, voice_fingerprint: str) -> None:
        """Refuses a model whose tokenizer, speaker encoder or mel settings did not make this table (InputError)."""
        if voice_fingerprint != self.voice_fingerprint:
            raise InputError(
                f"voices: {self.url} was made by another tokenizer, speaker encoder or mel (fingerprint "
                f"{self.voice_fingerprint[:16]}) than the model's ({voice_fingerprint[:16]}); make the table anew with "
                "`s3gen voices --model` and this model"
            )

    def get(self, voice_id: str) -> Voice | None:
        """One voice, or None when the table has no such id."""
        return self.get_many([voice_id]).get(voice_id)

    def get_many(self, voice_ids: Iterable[str]) -> dict[str, Voice]:
        """Those of the voices that the table has; each row group is read once."""
        found: dict[str, Voice] = {}
        missing: dict[int, list[str]] = {}
        for voice_id in sorted(set(voice_ids)):
            if voice_id in self._cache:
                self._cache.move_to_end(voice_id)
                found[voice_id] = self._cache[voice_id]
            elif (group := self._group_of(voice_id)) is not None:
                missing.setdefault(group, []).append(voice_id)
        for group, wanted in missing.items():
            found |= self._read(group, wanted)
        return found

    def rows(self, columns: list[str] | None = None) -> Iterator[pa.RecordBatch]:
        """The table from first to last, a row group's worth at a time."""
        for group in range(len(self._groups)):
            yield from self._rows(group, columns).to_batches()

    def _group_of(self, voice_id: str) -> int | None:
        """The only row group that can hold an id: the last one that does not begin after it."""
        number = bisect_right(self._groups, voice_id, key=attrgetter("first")) - 1
        return number if number >= 0 and voice_id <= self._groups[number].last else None

    def _bounds(self, number: int, group: Group) -> _Bounds:
        ids = group.chunks[0]
        if ids.least is None or ids.most is None:
            raise InputError(f"voices: {self.url} has lost its row group statistics; make it anew with `s3gen voices`")
        try:
            return _Bounds(ids.least.decode(), ids.most.decode(), group.at)
        except UnicodeDecodeError as error:
            raise self._damaged(number, error) from None

    def _check_order(self) -> None:
        """A table that is not sorted would hide voices from the search, and one with an id twice be ambiguous."""
        for one, next_one in pairwise(self._groups):
            if not one.last < next_one.first:
                raise InputError(
                    f"voices: {self.url} is not sorted by voice_id, or has one twice: {next_one.first!r} comes after "
                    f"{one.last!r}; make it anew with `s3gen voices`"
                )

    def _rows(self, group: int, columns: list[str] | None) -> pa.Table:
        try:
            claimed = self._footer.group(self._groups[group].at)
            if rows_at_once(self._file, self._footer.columns, claimed) < min(claimed.rows, ROW_GROUP_VOICES):
                raise ValueError(f"its {claimed.rows} rows claim more memory than voices take")
            return self._parquet.read_row_group(group, columns=columns, use_threads=False)
        except JobError:
            raise
        except Exception as error:  # damaged pages can make the reader raise anything
            raise self._damaged(group, error) from None

    def _damaged(self, group: int, error: Exception) -> InputError:
        return InputError(
            f"voices: {self.url} is damaged (row group {group}): {error}; make it anew with `s3gen voices`"
        )

    def _read(self, group: int, wanted: list[str]) -> dict[str, Voice]:
        rows = self._rows(group, list(VOICE_COLUMNS))
        ids = rows.column("voice_id").to_pylist()
        places = {voice_id: row for row, voice_id in enumerate(ids)}
        if len(places) < len(ids):
            raise self._damaged(group, ValueError("a voice_id is there twice"))
        found = {voice_id: self._voice(rows, places[voice_id]) for voice_id in wanted if voice_id in places}
        self._cache |= found
        while len(self._cache) > self._cached_voices:
            self._cache.popitem(last=False)
        return found

    def _voice(self, rows: pa.Table, row: int) -> Voice:
        try:
            token, feat, embedding = (rows.column(name)[row].values.to_numpy().copy() for name in VOICE_COLUMNS[1:])
            mel = feat.reshape(-1, MEL_BINS)
            if len(embedding) != SPEAKER_DIM:
                raise ValueError(f"its embedding has {len(embedding)} numbers, not {SPEAKER_DIM}")
            return Voice.from_ref({"prompt_token": token.astype("int64"), "prompt_feat": mel, "embedding": embedding})
        except (ValueError, AttributeError) as error:
            voice_id = rows.column("voice_id")[row].as_py()
            raise InputError(f"voices: {self.url}: the voice {voice_id!r} is damaged: {error}") from None

    def _footer_digest(self) -> str:
        # Beside the schema: the digest is known only when the last voice is written.
        entry = (self._parquet.metadata.metadata or {}).get(b"s3gen_voices_digest")
        if entry is None:
            raise InputError(f"voices: {self.url} is not a whole voice table; make it anew with `s3gen voices`")
        return bytes(entry).decode("ascii", "replace")


def _settings(url: str, schema: pa.Schema) -> dict[str, Any]:
    text = (schema.metadata or {}).get(METADATA_KEY)
    if text is None or not schema.equals(SCHEMA):
        raise InputError(f"voices: {url} is a Parquet file, but not a voice table; make one with `s3gen voices`")
    settings = json.loads(text)
    version = settings.get("format_version") if isinstance(settings, dict) else None
    if version != FORMAT_VERSION:
        raise InputError(
            f"voices: {url} has format version {version}, this program reads {FORMAT_VERSION}; "
            "make it anew with `s3gen voices`"
        )
    said = (settings.get("voice_fingerprint"), settings.get("max_seconds"))
    loudness = settings.get("loudness")
    known = isinstance(said[0], str) and isinstance(said[1], float | int)
    if not known or not (loudness is None or isinstance(loudness, float | int)):
        raise InputError(f"voices: {url} does not say what made it; make it anew with `s3gen voices`")
    return settings
