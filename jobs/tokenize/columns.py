"""The columns of a job of tokens: what its input may have, what its tables keep of it, and under which names."""

from __future__ import annotations

import posixpath
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from jobs.errors import InputError
from jobs.formats.writers import pick
from jobs.ledger.tables import failures_schema, renamed
from jobs.manifest.columns import FORBIDDEN, is_text
from jobs.manifest.manifest import Ints
from jobs.manifest.texts import texts
from jobs.storage.credentials import scrubbed
from jobs.storage.lists import beside
from jobs.storage.urls import is_url
from jobs.tokenize.tars import PLACE_COLUMNS, PROBLEM_COLUMN

# Names that the token manifest uses itself, or that mean something to the job that reads it.
TAKEN = ("tokens", "audio_seconds", "seed", *FORBIDDEN)
PATH, OFFSET, BYTES = PLACE_COLUMNS
TOKENS = pa.list_(pa.field("element", pa.int32()))  # as it is when it has been read back


class Clip(NamedTuple):
    """Where a recording is: in a file, in a part of one, or here."""

    url: str | None
    offset: int | None = None
    size: int | None = None
    data: Any = None  # an Arrow value: its bytes are copied when they are read


def check_audio_columns(url: str, columns: pa.Schema) -> None:
    """Refuses a Parquet file that does not say where recordings are, or how they are called (InputError)."""
    names = columns.names
    doubled = sorted({name for name in names if names.count(name) > 1})
    if doubled:
        raise InputError(f"{url}: the column {doubled[0]!r} is there {names.count(doubled[0])} times")
    if "audio" not in names:
        if PATH not in names:
            raise InputError(f"{url}: no column 'audio' and no column 'path'; it has {', '.join(names)}")
        if "id" not in names and "voice_id" not in names:
            raise InputError(f"{url}: no column 'id' and no column 'voice_id'; it has {', '.join(names)}")
    for name, wanted in misfits(columns):
        raise InputError(f"{url}: the column {name!r} is {columns.field(name).type}, it must be {wanted}")


def misfits(columns: pa.Schema) -> Iterator[tuple[str, str]]:
    """The columns that a job needs and that are of another type: names, and what they must be."""
    for name, (fits, wanted) in _TYPES.items():
        needed = name in ("id", "voice_id", "audio") or "audio" not in columns.names
        if needed and name in columns.names and not fits(columns.field(name).type):
            yield name, wanted


def _is_name(kind: pa.DataType) -> bool:
    return is_text(kind) or pa.types.is_integer(kind)


def _is_audio(kind: pa.DataType) -> bool:
    if not pa.types.is_struct(kind):
        return _is_bytes(kind)
    parts = {field.name: field.type for field in kind}
    path = parts.get("path", pa.null())
    return "bytes" in parts and _is_bytes(parts["bytes"]) and (is_text(path) or pa.types.is_null(path))


def _is_bytes(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        return _is_bytes(kind.value_type)
    kinds = (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_binary_view, pa.types.is_fixed_size_binary)
    return any(fits(kind) for fits in kinds) or bool(pa.types.is_null(kind))


_TYPES: Mapping[str, tuple[Callable[[pa.DataType], bool], str]] = {
    "id": (_is_name, "text (string) or integers"),
    "voice_id": (_is_name, "text (string) or integers"),
    PATH: (is_text, "text (string)"),
    OFFSET: (pa.types.is_integer, "integers"),
    BYTES: (pa.types.is_integer, "integers"),
    PROBLEM_COLUMN: (is_text, "text (string)"),
    "audio": (_is_audio, "a struct of bytes and path, or bytes: an audio file in each row"),
}


class TokenColumns:
    """The columns of one job.

    Attributes:
        known: of each row of the input, whatever becomes of it: `id`, `voice_id`, and all others but `audio`, with
            `source_` before the names in `TAKEN`.
        table: of the token manifest.
        failures: of the failures table.

    Args:
        columns: of the input.
        voice: the voice id of all rows; None for the input's own.
        base: what ids that are made of files' URLs leave out at the beginning.
    """

    def __init__(self, columns: pa.Schema, voice: str | None, base: str = "") -> None:
        self._voice, self._names, self._base = voice, columns.names, base
        self._embedded = "audio" in columns.names
        others = [field for field in columns if field.name not in ("id", "voice_id", "audio")]
        if not self._embedded:
            others = [pa.field(PATH, pa.string()) if field.name == PATH else field for field in others]
        self._others = [field.name for field in others]
        named = renamed(others, TAKEN, "source_")
        self.known = pa.schema([pa.field("id", pa.string()), pa.field("voice_id", pa.string()), *named])
        self.failures = failures_schema(self.known)
        # Where recordings lie is in the job's list and its failures: a table that is published does not say it.
        own = (PATH, OFFSET, BYTES, PROBLEM_COLUMN)
        self._kept = [field for field in named if self._embedded or field.name not in own]
        head = [
            pa.field("id", pa.string(), nullable=False),
            pa.field("voice_id", pa.string(), nullable=False),
            pa.field("tokens", TOKENS, nullable=False),
            pa.field("audio_seconds", pa.float64(), nullable=False),  # of the recording
        ]
        self.table = pa.schema([*head, *self._kept])

    def rows(self, batch: pa.RecordBatch, urls: Sequence[str], rows: Ints) -> tuple[pa.Table, list[Clip]]:
        """Some rows of the input: what is known of them, and where their recordings are.

        Args:
            urls: of each row's file.
            rows: each row's number there.
        """
        clips = self._embedded_clips(batch, urls) if self._embedded else self._clips(batch, urls)
        ids = self._ids(batch, urls, rows)
        voices = ids
        if self._voice is not None:
            voices = pa.array([self._voice] * batch.num_rows, pa.string())
        elif "voice_id" in self._names:
            voices = _each(_as_text(batch["voice_id"]), ids)
        own = {name: batch[name] for name in self._others}
        if not self._embedded:
            own[PATH] = pa.array([clip.url and _shown(clip.url) for clip in clips], pa.string())
        return pa.table([ids, voices, *own.values()], schema=self.known), clips

    def made(self, known: pa.Table, tokens: Mapping[int, Ints], seconds: Mapping[int, float]) -> pa.Table:
        """The token manifest's part of rows that were made, in order.

        Args:
            known: all rows.
            tokens, seconds: by position in `known`.
        """
        positions = sorted(tokens)
        picked = pick(known, positions)
        columns = [
            picked["id"],
            picked["voice_id"],
            pa.array([tokens[at] for at in positions], TOKENS),
            pa.array([seconds[at] for at in positions], pa.float64()),
            *(picked[field.name] for field in self._kept),
        ]
        return pa.table(columns, schema=self.table)

    def _ids(self, batch: pa.RecordBatch, urls: Sequence[str], rows: Ints) -> pa.Array:
        for name in ("id", "voice_id"):
            if name in self._names and (name == "id" or not self._embedded):
                return _as_text(batch[name])
        paths = _paths(batch["audio"])
        named = zip(paths, urls, rows.tolist(), strict=True)
        ids = [_stem(path) if path else f"{_stem(url.removeprefix(self._base))}/{row}" for path, url, row in named]
        return pa.array(ids, pa.string())

    def _clips(self, batch: pa.RecordBatch, urls: Sequence[str]) -> list[Clip]:
        paths = [path if isinstance(path, str) else None for path in texts(pa.chunked_array([batch[PATH]]))]
        found = [beside(url, path) if path else None for path, url in zip(paths, urls, strict=True)]
        if OFFSET not in self._names or BYTES not in self._names:
            return [Clip(url) for url in found]
        places = zip(found, batch[OFFSET].to_pylist(), batch[BYTES].to_pylist(), strict=True)
        return [Clip(*place) for place in places]

    def _embedded_clips(self, batch: pa.RecordBatch, urls: Sequence[str]) -> list[Clip]:
        audio = batch["audio"]
        paths = _paths(audio)
        data = _plain(audio.field("bytes") if pa.types.is_struct(audio.type) else audio)
        return [
            Clip(beside(url, path) if path else None, data=data[row] if valid else None)
            for row, (path, url, valid) in enumerate(zip(paths, urls, _valid(audio, data), strict=True))
        ]


def _valid(audio: pa.Array, data: pa.Array) -> list[bool]:
    # The parts of a struct that is null may be anything.
    return [
        here and there for here, there in zip(audio.is_valid().to_pylist(), data.is_valid().to_pylist(), strict=True)
    ]


def _paths(audio: pa.Array) -> list[str | None]:
    if not pa.types.is_struct(audio.type) or audio.type.get_field_index("path") < 0:
        return [None] * len(audio)
    paths = audio.field("path")
    if pa.types.is_null(paths.type):
        return [None] * len(audio)
    return [path if isinstance(path, str) else None for path in texts(pa.chunked_array([paths]))]


def _stem(path: str) -> str:
    return posixpath.splitext(_shown(path))[0]


def _shown(path: str) -> str:
    return scrubbed(path, []) if is_url(path) else path


def _each(voices: pa.Array, ids: pa.Array) -> pa.Array:
    """Each row's voice, or its id where it has none: a list cannot but leave a cell empty."""
    return pc.if_else(pc.fill_null(pc.equal(voices, ""), True), ids, voices)


def _plain(column: pa.Array) -> pa.Array:
    return column.dictionary_decode() if pa.types.is_dictionary(column.type) else column


def _as_text(column: pa.Array) -> pa.Array:
    return _plain(column).cast(pa.string())
