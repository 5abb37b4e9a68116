"""Shard files of Parquet and WebDataset, and what every format has in common; see ``formats`` for all of them.

All functions that write a shard have one contract (`WriteShard`): the table of columns and the clips go in, row by row
in the same order, and the same input gives the same bytes on every machine and day: no times, no owners, no random
names.
"""

from __future__ import annotations

import base64
import io
import json
import math
import tarfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from jobs.formats.keys import key_of
from jobs.manifest.rows import Row

# Small row groups: a reader that wants one row decompresses no more than this, and the Hub's viewer stays quick.
ROW_GROUP_ROWS = 100
ROW_GROUP_BYTES = 32 * 2**20

FILE_MODE = 0o644

AUDIO_TYPE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
INPUT_COLUMNS = ("tokens", "seed")


@dataclass(frozen=True, kw_only=True, slots=True)
class Sound:
    """What is known of a shard's clips beside their bytes.

    Attributes:
        suffix: of their files ("flac").
        rate: Hz.
        samples: of each.
    """

    suffix: str
    rate: int
    samples: Sequence[int]


# path, columns (their `id` first), one encoded clip per row, what is known of them
WriteShard = Callable[[Path, pa.Table, Iterable[bytes], Sound], None]


def stored_columns(table: pa.Table, rows: Sequence[Row], *, keep_inputs: bool) -> pa.Table:
    """What a shard keeps of its manifest rows, beside the audio.

    Args:
        table: the shard's rows as the manifest has them.
        rows: those that were made, in manifest order.
        keep_inputs: keep `tokens` as they were given, and `seed`, of a row that got another one that one; where the
            manifest has no seeds, the ones used (uint64), so that each row can be made again on its own.

    Returns:
        `id`, `voice_id`, then the manifest's other columns, unchanged, in its order.
    """
    columns: dict[str, pa.Array | pa.ChunkedArray] = {
        "id": pa.array([row.id for row in rows], pa.string()),
        "voice_id": pa.array([row.voice_id for row in rows], pa.string()),
    }
    kept = pick(table, [row.position for row in rows])
    for name in table.column_names:
        if name not in columns and (keep_inputs or name not in INPUT_COLUMNS):
            columns[name] = kept.column(name)
    if keep_inputs:
        columns["seed"] = _seeds(rows, columns.get("seed"))
    return pa.table(columns)


def _seeds(rows: Sequence[Row], given: pa.Array | pa.ChunkedArray | None) -> pa.Array | pa.ChunkedArray:
    if given is None:
        return pa.array([row.seed for row in rows], pa.uint64())
    if not any(row.reseeded for row in rows):
        return given
    own = zip(rows, given.to_pylist(), strict=True)
    used = [row.seed if row.reseeded else seed for row, seed in own]
    return pa.array(used, given.type if pa.types.is_integer(given.type) else pa.float64()).cast(given.type)


def pick(table: pa.Table, positions: Sequence[int]) -> pa.Table:
    """The rows of a table at ascending positions; by slices, since `take` lacks some of the types that files hold."""
    starts = [n for n, position in enumerate(positions) if n == 0 or position != positions[n - 1] + 1]
    runs = zip(starts, [*starts[1:], len(positions)], strict=False)
    slices = [table.slice(positions[start], stop - start) for start, stop in runs]
    return pa.concat_tables(slices) if slices else table.slice(0, 0)


def write_parquet(path: Path, columns: pa.Table, clips: Iterable[bytes], sound: Sound) -> None:
    """A Parquet shard in the Hugging Face Audio convention: `id`, `voice_id`, `audio`, then the other columns."""
    names = columns.column_names
    order = [*names[:2], "audio", *names[2:]]
    fields = [pa.field("audio", AUDIO_TYPE) if name == "audio" else columns.schema.field(name) for name in order]
    schema = pa.schema(fields, metadata={"huggingface": json.dumps(_huggingface(fields, sound.rate))})
    # Audio is compressed already and never repeats: a dictionary of clips would only cost memory.
    options = {"compression": "snappy", "use_dictionary": [name for name in order if name != "audio"]}
    with pq.ParquetWriter(path, schema, **options) as writer:
        start = 0
        for group in _groups(clips):
            rows = columns.slice(start, len(group))
            paths = [f"{key_of(row_id)}.{sound.suffix}" for row_id in rows.column("id").to_pylist()]
            audio = pa.StructArray.from_arrays(
                [pa.array(group, pa.binary()), pa.array(paths, pa.string())], fields=list(AUDIO_TYPE)
            )
            arrays = [audio if name == "audio" else rows.column(name) for name in order]
            writer.write_table(pa.table(arrays, schema=schema), row_group_size=len(group))
            start += len(group)


def write_webdataset(path: Path, columns: pa.Table, clips: Iterable[bytes], sound: Sound) -> None:
    """A tar shard for WebDataset: `key.flac`, then `key.json` with every column; see `json_value` for its types.

    Names over 100 bytes, which ustar headers cannot hold, get a pax header before them, as POSIX.1-2001 has it.
    """
    names = columns.column_names
    with plain_tar(path) as tar:
        for row, clip in enumerate(clips):
            values = {name: json_value(columns.column(name)[row]) for name in names}
            key = key_of(values["id"])
            add_member(tar, f"{key}.{sound.suffix}", clip)
            add_member(tar, f"{key}.json", json.dumps(values, allow_nan=False).encode("ascii"))


def json_value(scalar: pa.Scalar) -> Any:
    """An Arrow value as JSON, without loss for whoever knows the column's type.

    What JSON has no form for becomes: binary a base64 string; dates, times and timestamps Arrow's ISO 8601 string at
    the column's full resolution (UTC where it has a zone); durations a count in the column's unit; decimals a string;
    NaN and the infinities the strings "NaN", "Infinity" and "-Infinity"; maps a list of [key, value] lists; bytes of
    a string that are not UTF-8 lone surrogates, as Python's "surrogateescape" has them.
    """
    kind = scalar.type
    if not scalar.is_valid:
        return None
    if pa.types.is_dictionary(kind) or isinstance(kind, pa.BaseExtensionType):
        return json_value(scalar.value)
    if pa.types.is_struct(kind):
        return {field.name: json_value(scalar[index]) for index, field in enumerate(kind)}
    if pa.types.is_map(kind):
        return [[json_value(pair[0]), json_value(pair[1])] for pair in scalar.values]
    if pa.types.is_nested(kind):
        items = scalar.values
        return items.to_pylist() if _is_json_type(items.type) else [json_value(item) for item in items]
    return _json_leaf(scalar)


def _json_leaf(scalar: pa.Scalar) -> Any:
    kind = scalar.type
    if _is_json_type(kind):
        return scalar.as_py()
    if pa.types.is_floating(kind):
        value = float(scalar.as_py())
        return value if math.isfinite(value) else json.dumps(value)
    if pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        return scalar.as_buffer().to_pybytes().decode("utf-8", "surrogateescape")
    if isinstance(scalar, pa.BinaryScalar | pa.LargeBinaryScalar | pa.FixedSizeBinaryScalar | pa.BinaryViewScalar):
        return base64.b64encode(scalar.as_buffer().to_pybytes()).decode("ascii")
    if pa.types.is_duration(kind):
        return scalar.value
    if pa.types.is_timestamp(kind) and kind.tz is not None:
        # Without the zone's name, which this machine need not know: what is left is the time in UTC.
        text: str = pc.cast(pc.cast(scalar, pa.timestamp(kind.unit)), pa.string()).as_py()
        return text if text.startswith("<") else f"{text}Z"  # Arrow's own words for a year beyond its calendar
    if pa.types.is_temporal(kind) and not pa.types.is_interval(kind):
        return pc.cast(scalar, pa.string()).as_py()
    return str(scalar.as_py())


def _is_json_type(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind) or pa.types.is_boolean(kind) or pa.types.is_null(kind))


def plain_tar(path: Path) -> tarfile.TarFile:
    """A new tar file; for `add_member`."""
    return tarfile.open(path, "w", format=tarfile.PAX_FORMAT, encoding="ascii")


def add_member(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    """Adds a file."""
    member = tarfile.TarInfo(name)  # time 0, owner 0, no names: nothing of the machine or the moment
    member.size = len(data)
    member.mode = FILE_MODE
    tar.addfile(member, io.BytesIO(data))


def _groups(clips: Iterable[bytes]) -> Iterable[list[bytes]]:
    """The clips in runs that make one row group each."""
    group: list[bytes] = []
    held = 0
    for clip in clips:
        group.append(clip)
        held += len(clip)
        if len(group) == ROW_GROUP_ROWS or held >= ROW_GROUP_BYTES:
            yield group
            group, held = [], 0
    if group:
        yield group


def _huggingface(fields: Sequence[pa.Field], rate: int) -> dict[str, Any]:
    features: dict[str, Any] = {}
    for field in fields:
        feature = {"sampling_rate": rate, "_type": "Audio"} if field.name == "audio" else _feature(field.type)
        if feature is not None:
            features[field.name] = feature
    return {"info": {"features": features}}


def _feature(kind: pa.DataType) -> dict[str, Any] | None:
    """The `datasets` feature of an Arrow type; None where it has none, and `datasets` is left to read the type."""
    if pa.types.is_struct(kind):
        inner = {field.name: _feature(field.type) for field in kind}
        return inner if inner and None not in inner.values() else None
    if pa.types.is_list(kind) or pa.types.is_fixed_size_list(kind):
        feature = None if pa.types.is_struct(kind.value_type) else _feature(kind.value_type)
        length = kind.list_size if pa.types.is_fixed_size_list(kind) else -1
        return feature and {"feature": feature, "length": length, "_type": "Sequence"}
    if pa.types.is_nested(kind) or pa.types.is_dictionary(kind) or isinstance(kind, pa.BaseExtensionType):
        return None
    dtype = _HUGGINGFACE_DTYPES.get(kind) or str(kind)
    return {"dtype": dtype, "_type": "Value"} if dtype.split("[")[0] in _HUGGINGFACE_NAMES else None


_HUGGINGFACE_DTYPES = {
    pa.float16(): "float16",
    pa.float32(): "float32",
    pa.float64(): "float64",
    pa.date32(): "date32",
    pa.date64(): "date64",
}
# Names under which `datasets` knows an Arrow type; where they differ from Arrow's own, the table above has them.
_HUGGINGFACE_NAMES = frozenset(
    {"null", "bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "float16", "float32"}
    | {"float64", "time32", "time64", "timestamp", "date32", "date64", "duration", "binary", "large_binary", "string"}
    | {"large_string"}
)
