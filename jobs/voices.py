"""Voice tables, the reading side: one Parquet file of reference voices, sorted by `voice_id`.

Small row groups and their minimum and maximum ids make the file its own index: opening reads the footer alone, and a
voice costs a binary search over it and one row group. What is held in memory is bounded, however large the table is.

Shape letters: P prompt tokens, F prompt frames (2 x P), M mel bins.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

from jobs.errors import InputError
from jobs.inputs import open_input
from jobs.urls import Options, absolute_url
from s3gen.constants import MEL_BINS
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


class VoiceTable:
    """A voice table open for reading.

    Attributes:
        url: where it is.
        voices: how many it holds.
        voice_fingerprint: of the model parts that made it.
        max_seconds: where clips were cut.
        digest: hex sha256 over ids, tokens, mels and vectors: equal tables have equal digests wherever they are.
    """

    def __init__(self, url: str, file: IO[bytes], cached_voices: int) -> None:
        self.url = url
        try:
            self._parquet = pq.ParquetFile(file)
        except (pa.ArrowInvalid, OSError) as error:
            raise InputError(f"voices: {url} is not a voice table: {error}; make one with `s3gen voices`") from None
        settings = _settings(url, self._parquet.schema_arrow)
        self.voice_fingerprint: str = settings["voice_fingerprint"]
        self.max_seconds: float = settings["max_seconds"]
        self.digest: str = self._footer_digest()
        self.voices: int = self._parquet.metadata.num_rows
        self._cache: OrderedDict[str, Voice] = OrderedDict()
        self._cached_voices = cached_voices

    @classmethod
    def open(cls, url: str, options: Options | None = None, *, cached_voices: int = CACHED_VOICES) -> VoiceTable:
        """Reads the footer.

        Raises:
            InputError: no such file, or not a voice table of this version.
        """
        url = absolute_url(url)
        try:
            file = open_input(url, options)
        except FileNotFoundError:
            raise InputError(f"voices: no such file: {url}; make it with `s3gen voices`") from None
        return cls(url, file, cached_voices)

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
        return iter(self._parquet.iter_batches(ROW_GROUP_VOICES, columns=columns, use_threads=False))

    def _group_of(self, voice_id: str) -> int | None:
        """The only row group that can hold an id: the last one that does not begin after it."""
        low, high = 0, self._parquet.metadata.num_row_groups
        while low < high:
            middle = (low + high) // 2
            if self._bounds(middle)[0] <= voice_id:
                low = middle + 1
            else:
                high = middle
        group = low - 1
        return group if group >= 0 and voice_id <= self._bounds(group)[1] else None

    def _bounds(self, group: int) -> tuple[str, str]:
        statistics = self._parquet.metadata.row_group(group).column(0).statistics
        if statistics is None or not statistics.has_min_max:
            raise InputError(f"voices: {self.url} has lost its row group statistics; make it anew with `s3gen voices`")
        return statistics.min, statistics.max

    def _read(self, group: int, wanted: list[str]) -> dict[str, Voice]:
        rows = self._parquet.read_row_group(group, columns=list(VOICE_COLUMNS), use_threads=False)
        places = {voice_id: row for row, voice_id in enumerate(rows.column("voice_id").to_pylist())}
        found = {voice_id: self._voice(rows, places[voice_id]) for voice_id in wanted if voice_id in places}
        self._cache |= found
        while len(self._cache) > self._cached_voices:
            self._cache.popitem(last=False)
        return found

    def _voice(self, rows: pa.Table, row: int) -> Voice:
        try:
            token, feat, embedding = (rows.column(name)[row].values.to_numpy().copy() for name in VOICE_COLUMNS[1:])
            mel = feat.reshape(-1, MEL_BINS)
            return Voice.from_ref({"prompt_token": token.astype("int64"), "prompt_feat": mel, "embedding": embedding})
        except (ValueError, AttributeError) as error:
            voice_id = rows.column("voice_id")[row].as_py()
            raise InputError(f"voices: {self.url}: the voice {voice_id!r} is damaged: {error}") from None

    def _footer_digest(self) -> str:
        # Beside the schema: the digest is known only when the last voice is written.
        entry = (self._parquet.metadata.metadata or {}).get(b"s3gen_voices_digest")
        if entry is None:
            raise InputError(f"voices: {self.url} is not a whole voice table; make it anew with `s3gen voices`")
        return bytes(entry).decode()


def _settings(url: str, schema: pa.Schema) -> dict[str, Any]:
    text = (schema.metadata or {}).get(METADATA_KEY)
    lacking = [name for name in SCHEMA.names if name not in schema.names]
    if text is None or lacking:
        raise InputError(f"voices: {url} is a Parquet file, but not a voice table; make one with `s3gen voices`")
    settings: dict[str, Any] = json.loads(text)
    if settings["format_version"] != FORMAT_VERSION:
        raise InputError(
            f"voices: {url} has format version {settings['format_version']}, this program reads {FORMAT_VERSION}; "
            "make it anew with `s3gen voices`"
        )
    return settings
