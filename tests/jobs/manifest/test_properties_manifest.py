"""Whatever a manifest looks like: each row is read once, judged once, and travels as it was."""

from __future__ import annotations

import datetime as dt
import gzip
import io
import json
import tarfile
import tempfile
import uuid
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import given, settings
from hypothesis import strategies as st

from jobs.formats.formats import FORMATS
from jobs.formats.keys import key_of
from jobs.formats.writers import Sound, json_value, stored_columns
from jobs.ledger.tables import failures_schema, failures_table
from jobs.manifest.manifest import Manifest, Span
from jobs.manifest.rows import check_rows
from jobs.manifest.seeds import derived_seed
from jobs.parquet.reader import read_parquet
from tests.jobs.forged_parquet import parquet

bounded = settings(max_examples=60)
MAX_TOKENS = 5

TEXT_KINDS = [
    *(pa.string(), pa.large_string(), pa.string_view()),
    *(pa.dictionary(pa.int8(), pa.string()), pa.dictionary(pa.int32(), pa.large_string())),
]
INTEGERS = [pa.int8(), pa.uint8(), pa.int16(), pa.uint16(), pa.int32(), pa.uint32(), pa.int64(), pa.uint64()]
LISTS = [pa.list_, pa.large_list, pa.list_view, pa.large_list_view, lambda kind: pa.list_(kind, 3)]
SEED_KINDS = [*INTEGERS, pa.float32(), pa.float64()]
UTC = dt.UTC
# Of each type two values and a null.
EXTRAS: list[tuple[pa.DataType, list[Any]]] = [
    (pa.bool_(), [True, False]),
    (pa.int8(), [-128, 127]),
    (pa.uint64(), [0, 2**64 - 1]),
    (pa.float16(), [1.5, float("nan")]),
    (pa.float32(), [float("inf"), -0.0]),
    (pa.float64(), [float("nan"), 1e308]),
    (pa.decimal128(20, 3), [Decimal("1.250"), Decimal("-99999999999999999.999")]),
    (pa.decimal256(60, 0), [Decimal(10**59), Decimal(0)]),
    (pa.string(), ["", "x\x00é\n"]),
    (pa.string_view(), ["short", "longer than twelve bytes"]),
    (pa.large_binary(), [b"\xff\x00", b""]),
    (pa.binary_view(), [b"\xff\x00", b"longer than twelve bytes"]),
    (pa.binary(3), [b"abc", b"\xff\xfe\xfd"]),
    (pa.date32(), [dt.date(1, 1, 1), dt.date(9999, 12, 31)]),
    (pa.time32("ms"), [dt.time(23, 59, 59), dt.time(0)]),
    (pa.time64("ns"), [0, 86_399_999_999_999]),
    (pa.timestamp("us"), [dt.datetime(1, 1, 1), dt.datetime(9999, 12, 31, 23, 59, 59, 999_999)]),
    (pa.timestamp("ns", "UTC"), [0, 2**63 - 1]),
    (pa.timestamp("us", "Europe/Berlin"), [dt.datetime(2024, 7, 1, tzinfo=UTC), dt.datetime(1960, 1, 1, tzinfo=UTC)]),
    (pa.timestamp("ms", "Nowhere/Land"), [0, 1]),
    (pa.timestamp("s"), [-(2**40), 2**40]),
    (pa.timestamp("ms"), [-(2**62), 2**62]),
    (pa.duration("us"), [dt.timedelta(days=-1), dt.timedelta(microseconds=1)]),
    (pa.null(), [None, None]),
    (pa.dictionary(pa.int16(), pa.string()), ["a", "b"]),
    (pa.list_(pa.string()), [[], ["a", None]]),
    (pa.large_list(pa.float32()), [[1.0, float("nan")], [None]]),
    (pa.list_(pa.int32(), 2), [[1, 2], [3, None]]),
    (pa.list_view(pa.int16()), [[1], []]),
    (pa.list_(pa.list_(pa.binary())), [[[b"x"], None, []], []]),
    (pa.struct({"a": pa.int32(), "b": pa.list_(pa.string())}), [{"a": 1, "b": ["x"]}, {"a": None, "b": None}]),
    (pa.list_(pa.struct({"x.y": pa.float64()})), [[{"x.y": 1.0}, None], []]),
    (pa.map_(pa.string(), pa.int64()), [[("k", 1), ("k", 2)], []]),
    (pa.uuid(), [uuid.UUID(int=5).bytes, uuid.UUID(int=2**128 - 1).bytes]),
    (pa.json_(), ['{"a": 1}', "not json"]),
]
NAMES = ["text", "a.b", "tokens.x", "", "__key__", "é\n", "error", "message", "own_error", "bytes", "element"]


class Given(NamedTuple):
    """A manifest as it was drawn: the columns' types and, per file, its rows as Python values."""

    kinds: dict[str, pa.DataType]
    files: list[list[dict[str, Any]]]
    row_group: int


# As bytes, since not every text that a file holds is UTF-8: surrogates are not, nor is what was cut in two.
good_texts = st.one_of(
    st.none(),
    st.sampled_from([b"a", b"b", b"", b"../../etc/passwd", b"C:\\x", b"nul\x00", b"x" * 10_000, "ü/.".encode()]),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=3).map(str.encode),
)
texts = st.one_of(good_texts, st.sampled_from([b"\xff", b"\xed\xa0\x80", "é".encode()[:1]]))


def texts_of(kind: pa.DataType) -> st.SearchStrategy[bytes | None]:
    # Arrow itself refuses to read a dictionary with anything but UTF-8 in it, unless its places are 32 bits wide.
    narrow = pa.types.is_dictionary(kind) and kind.index_type != pa.int32()
    return good_texts if narrow else texts


@st.composite
def manifests(draw: st.DrawFn) -> Given:
    integer = draw(st.sampled_from(INTEGERS))
    make_list = draw(st.sampled_from(LISTS))
    kinds = {name: draw(st.sampled_from(TEXT_KINDS)) for name in ("id", "voice_id")}
    kinds["tokens"] = make_list(integer)
    low, high = bounds_of(integer)
    token = st.one_of(
        st.integers(max(low, 0), min(high, 6560)),
        st.sampled_from([value for value in (low, high, -1, 6560, 6561, 6562, 6563) if low <= value <= high]),
        st.none(),
    )
    fixed = pa.types.is_fixed_size_list(kinds["tokens"])
    values: dict[str, st.SearchStrategy[Any]] = {
        "id": texts_of(kinds["id"]),
        "voice_id": texts_of(kinds["voice_id"]),
        "tokens": st.none() | st.lists(token, min_size=3 if fixed else 0, max_size=3 if fixed else 8),
    }
    if draw(st.booleans()):
        kinds["seed"] = draw(st.sampled_from(SEED_KINDS))
        values["seed"] = st.none() | seeds_of(kinds["seed"])
    for name in draw(st.lists(st.sampled_from(NAMES), max_size=3, unique=True)):
        kinds[name], some = draw(st.sampled_from(EXTRAS))
        values[name] = st.sampled_from([None, *some])
    files = draw(st.lists(st.lists(st.fixed_dictionaries(values), max_size=12), min_size=1, max_size=3))
    return Given(kinds, files, draw(st.integers(1, 5)))


def bounds_of(kind: pa.DataType) -> tuple[int, int]:
    signed = pa.types.is_signed_integer(kind)
    return (-(2 ** (kind.bit_width - 1)), 2 ** (kind.bit_width - 1) - 1) if signed else (0, 2**kind.bit_width - 1)


def seeds_of(kind: pa.DataType) -> st.SearchStrategy[Any]:
    if pa.types.is_integer(kind):
        return st.integers(*bounds_of(kind))
    return st.sampled_from([0.0, -0.0, 7.0, 2.5, float("nan"), float("inf"), -(2.0**53), 2.0**54, -1e30])


def array_of(values: list[Any], kind: pa.DataType) -> pa.Array:
    if pa.types.is_dictionary(kind) and pa.types.is_integer(kind.index_type) and values_are_bytes(values):
        known = sorted({value for value in values if value is not None})
        places = [None if value is None else known.index(value) for value in values]
        return pa.DictionaryArray.from_arrays(pa.array(places, kind.index_type), array_of(known, kind.value_type))
    if values_are_bytes(values) and kind in (pa.string(), pa.large_string(), pa.string_view()):
        raw = {pa.string(): pa.binary(), pa.large_string(): pa.large_binary(), pa.string_view(): pa.binary_view()}
        return pa.array(values, raw[kind]).view(kind)
    if isinstance(kind, pa.BaseExtensionType):
        return pa.ExtensionArray.from_storage(kind, pa.array(values, kind.storage_type))
    return pa.array(values, kind)


def values_are_bytes(values: list[Any]) -> bool:
    return all(value is None or isinstance(value, bytes) for value in values)


def table_of(rows: list[dict[str, Any]], kinds: dict[str, pa.DataType]) -> pa.Table:
    arrays = [array_of([row[name] for row in rows], kind) for name, kind in kinds.items()]
    return pa.Table.from_arrays(arrays, names=list(kinds))


def write(folder: Path, drawn: Given) -> Manifest | None:
    """The manifest on disk, scanned; None where it has no rows at all."""
    for number, rows in enumerate(drawn.files):
        data = parquet(table_of(rows, drawn.kinds), row_group_size=drawn.row_group)
        (folder / f"{number}.parquet").write_bytes(data)
    return Manifest.scan(str(folder)) if any(drawn.files) else None


def code_of(row: dict[str, Any], seen: set[bytes]) -> str | None:
    """What should become of a row; None for a good one."""
    for column in ("id", "voice_id"):
        if row[column] is None:
            return f"null_{column}"
        if not is_utf8(row[column]):
            return f"bad_{column}"
    tokens = row["tokens"]
    if tokens is None:
        return "null_tokens"
    if any(token is None or not 0 <= token <= 6562 for token in tokens):
        return "token_out_of_range"
    kept = [token for token in tokens if token < 6561]
    if not kept:
        return "empty_tokens"
    if len(kept) > MAX_TOKENS:
        return "too_long"
    seed = row.get("seed")
    if isinstance(seed, float) and seed == seed and (abs(seed) > 2**53 or seed != int(seed)):
        return "bad_seed"
    return "duplicate_id" if row["id"] in seen else None


def is_utf8(value: bytes) -> bool:
    try:
        value.decode()
    except UnicodeDecodeError:
        return False
    return True


def seed_of(row: dict[str, Any], job_seed: int) -> int:
    seed = row.get("seed")
    return derived_seed(job_seed, row["id"].decode()) if seed is None or seed != seed else int(seed)


def every_span(manifest: Manifest) -> list[Span]:
    return [Span(number, 0, file.rows) for number, file in enumerate(manifest.files)]


@bounded
@given(manifests())
def test_a_row_is_judged_twice_or_never_or_wrongly(drawn: Given) -> None:
    with tempfile.TemporaryDirectory() as folder:
        manifest = write(Path(folder), drawn)
        if manifest is None:
            return
        spans = every_span(manifest)
        rows, failures = check_rows(manifest.read(spans), job_seed=9, max_tokens=MAX_TOKENS)
        urls, numbers = manifest.origins(spans)
    given_rows = [row for file in drawn.files for row in file]
    assert sorted([r.position for r in rows] + [f.position for f in failures]) == list(range(len(given_rows)))
    places = [(f"{number}.parquet", at) for number, file in enumerate(drawn.files) for at in range(len(file))]
    assert [(Path(url).name, at) for url, at in zip(urls, numbers.tolist(), strict=True)] == places

    made = {row.position: row for row in rows}
    failed = {failure.position: failure.error for failure in failures}
    seen: set[bytes] = set()
    for position, row in enumerate(given_rows):
        code = code_of(row, seen)
        assert failed.get(position) == code
        if code is None:
            assert (made[position].id, made[position].voice_id) == (row["id"].decode(), row["voice_id"].decode())
            assert made[position].tokens.tolist() == [token for token in row["tokens"] if token < 6561]
            assert made[position].tokens.dtype == np.int64
            assert made[position].seed == seed_of(row, 9)
        if row["id"] is not None and is_utf8(row["id"]):
            seen.add(row["id"])


@bounded
@given(manifests(), st.data())
def test_a_slice_is_other_than_that_of_the_whole(drawn: Given, data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as folder:
        manifest = write(Path(folder), drawn)
        if manifest is None:
            return
        whole = [manifest.read([span]) for span in every_span(manifest)]
        spans = []
        for _ in range(data.draw(st.integers(0, 4))):
            number = data.draw(st.integers(0, len(whole) - 1))
            start, stop = sorted(data.draw(st.lists(st.integers(0, whole[number].num_rows), min_size=2, max_size=2)))
            spans.append(Span(number, start, stop))
        read = manifest.read(spans)
    parts = [whole[span.file].slice(span.start, span.stop - span.start) for span in spans]
    assert values(read) == values(pa.concat_tables(parts) if parts else whole[0].slice(0, 0))
    assert read.schema == whole[0].schema == manifest.columns


def values(table: pa.Table) -> list[list[Any]]:
    """A table's values as JSON has them, in which NaN equals itself."""
    return [[json_value(scalar) for scalar in column] for column in table.columns]


def told(cut: dict[str, Any]) -> dict[str, Any]:
    """The columns that a cut has its values of."""
    (spoken,) = cut["supervisions"]
    said = {name: spoken[name] for name in ("text", "language") if name in spoken}
    return {"id": spoken["id"], "voice_id": spoken["speaker"], **said, **cut["custom"]}


@bounded
@given(manifests(), st.booleans())
def test_a_column_is_lost_or_changed_on_its_way(drawn: Given, keep_inputs: bool) -> None:
    """Into shards of all formats, and into the failures table."""
    with tempfile.TemporaryDirectory() as name:
        manifest = write(Path(name), drawn)
        if manifest is None:
            return
        spans = every_span(manifest)
        table = manifest.read(spans)
        rows, failures = check_rows(table, job_seed=0, max_tokens=MAX_TOKENS)
        columns = stored_columns(table, rows, keep_inputs=keep_inputs)
        clips = [f"clip {row.position}".encode() for row in rows]
        sound = Sound(suffix="flac", rate=24_000, samples=[len(clip) for clip in clips])
        for kind, shard_format in FORMATS.items():
            shard_format.write(Path(name) / kind, columns, iter(clips), sound)
            if shard_format.write_cuts is not None:
                shard_format.write_cuts(Path(name) / "cuts", columns, sound)
        stored = pq.ParquetFile(Path(name) / "parquet").read()
        members = members_of((Path(name) / "webdataset").read_bytes())
        cuts = [json.loads(line) for line in gzip.decompress((Path(name) / "cuts").read_bytes()).splitlines()]
        failed = parquet(failures_table(failures, table, manifest.origins(spans)))

    for column in manifest.columns.names:
        if keep_inputs or column not in ("tokens", "seed"):
            wanted = [values(table.select([column]))[0][row.position] for row in rows]
            assert values(stored.select([column]))[0] == wanted
            assert (
                column in ("id", "voice_id") or stored.schema.field(column).type == manifest.columns.field(column).type
            )
    texts = [{name: values(columns.select([name]))[0][n] for name in columns.column_names} for n in range(len(rows))]
    assert [told(line) for line in cuts] == [
        {name: json.dumps(value) if isinstance(value, dict) else value for name, value in text.items()}
        for text in texts
    ]
    for row, (key, suffix, data) in zip([row for row in rows for _ in range(2)], members, strict=True):
        assert key == key_of(row.id)
        if suffix == "json":
            assert json.loads(data) == texts[rows.index(row)]
        else:
            assert (suffix, data) == ("flac", f"clip {row.position}".encode())

    wanted_schema = failures_schema(manifest.columns)
    # As the end of a job brings the parts of its shards together.
    again = read_parquet(failed).select(wanted_schema.names).cast(wanted_schema)
    others = [column for column in manifest.columns.names if column not in ("id", "voice_id")]
    for column, stored_as in zip(
        ["id", "voice_id", *others], [*wanted_schema.names[:2], *wanted_schema.names[6:]], strict=True
    ):
        wanted = [
            values(table.select([column]))[0][failure.position]
            for failure in sorted(failures, key=lambda f: f.position)
        ]
        assert values(again.select([stored_as]))[0] == wanted


def members_of(tar: bytes) -> list[tuple[str, str, bytes]]:
    found = []
    with tarfile.open(fileobj=io.BytesIO(tar)) as archive:
        for member in archive:
            key, _, suffix = member.name.partition(".")
            content = archive.extractfile(member)
            assert content is not None
            found.append((key, suffix, content.read()))
    return found
