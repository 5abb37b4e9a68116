"""Manifests that are damaged, that lie, or that are bombs: bad input every time, at no great cost."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from jobs.errors import InputError
from jobs.manifest import manifest as manifest_module
from jobs.manifest.manifest import Manifest, Span
from jobs.parquet import pages
from tests import fuzz
from tests.jobs.forged_parquet import (
    BINARY,
    CHUNK,
    COLUMNS,
    DATA_PAGE,
    DICTIONARY_PAGE,
    GROUP_ROWS,
    I32,
    KEY_VALUES,
    LIST,
    NAME,
    NUM_CHILDREN,
    NUM_ROWS,
    NUM_VALUES,
    PAGE_COMPRESSED,
    PAGE_UNCOMPRESSED,
    PAGE_VALUES,
    ROW_GROUPS,
    SCHEMA,
    STRUCT,
    TYPE_LENGTH,
    Page,
    Struct,
    chunks,
    closed,
    footer_of,
    forged,
    parquet,
    put,
    rebuilt,
    varint,
)

BILLION = 10**9
MOST_SECONDS = 10.0  # of a processor
MOST_MEMORY = 3 << 29  # bytes; texts are decoded into no more than a third of it at a time
ID, TOKENS, VOICE, EXTRA = range(4)  # column chunks


def table_of(count: int, **columns: Any) -> pa.Table:
    return pa.table(
        {
            "id": pa.array([f"u{n}" for n in range(count)]),
            "tokens": pa.array([[1, 2, 3]] * count, pa.list_(pa.int32())),
            "voice_id": pa.array(["v"] * count),
            **columns,
        }
    )


def plain(count: int = 1, **columns: Any) -> bytes:
    """A good manifest without compression or dictionaries, in pages of the first version."""
    return parquet(table_of(count, **columns), compression="none", use_dictionary=False)


# --- damage of every kind ---------------------------------------------------------------------------------------------


def test_a_damaged_manifest_ends_in_another_way_than_bad_input_or_whole_rows() -> None:
    said, wrong = fuzz.hunt(seed=0, seconds=300.0, count=400)
    assert wrong is None, wrong
    ends = ast.literal_eval(said)
    assert {"scan", "read", "used"} == set(ends)
    assert sum(ends.values()) == 400


def test_a_file_cut_anywhere_is_taken_for_a_whole_one(tmp_path: Path) -> None:
    whole = parquet(table_of(40), row_group_size=10)
    path = tmp_path / "m.parquet"
    for length in range(0, len(whole), 7):
        path.write_bytes(whole[:length])
        with pytest.raises(InputError, match=r"m\.parquet: not a Parquet file"):
            Manifest.scan(str(path))


# --- bombs ------------------------------------------------------------------------------------------------------------


def run_of(value: int, count: int) -> bytes:
    """A run in Parquet's run-length encoding, of values of at most 8 bits."""
    return varint(count << 1) + bytes([value])


def level_runs(*runs: tuple[int, int]) -> bytes:
    data = b"".join(run_of(value, count) for value, count in runs)
    return len(data).to_bytes(4, "little") + data


def with_page(data: bytes, chunk: int, body: bytes, values: int) -> bytes:
    """The file with one data page of these bytes in a column chunk, and a footer that agrees."""

    def change(number: int, found: list[Page]) -> list[Page]:
        if number != chunk:
            return found
        page = Page(found[-1].header, body)
        put(page.header, PAGE_COMPRESSED, len(body))
        put(page.header, PAGE_UNCOMPRESSED, len(body))
        put(page.header[DATA_PAGE][1], PAGE_VALUES, values)
        return [*found[:-1], page]

    made = rebuilt(data, change)
    return forged(made, lambda footer: put(list(chunks(footer))[chunk], NUM_VALUES, values))


def a_list_of_a_billion_nulls() -> bytes:
    body = level_runs((0, 1), (1, BILLION - 1)) + level_runs((2, BILLION))
    return with_page(plain(), TOKENS, body, BILLION)


def a_list_of_a_billion_nulls_under_a_modest_footer() -> bytes:
    return forged(a_list_of_a_billion_nulls(), lambda footer: put(list(chunks(footer))[TOKENS], NUM_VALUES, 3))


def a_list_of_a_billion_equal_tokens() -> bytes:
    data = parquet(table_of(1), compression="none")
    body = level_runs((0, 1), (1, BILLION - 1)) + level_runs((3, BILLION)) + b"\x01" + run_of(0, BILLION)
    return with_page(data, TOKENS, body, BILLION)


def a_billion_nulls_in_one_row_of_many() -> bytes:
    count = 20_000
    body = level_runs((0, count), (1, BILLION)) + level_runs((2, count + BILLION))
    return with_page(plain(count), TOKENS, body, count + BILLION)


def a_row_of_many_long_texts() -> bytes:
    count, values = 10, 100_000
    texts = pa.DictionaryArray.from_arrays(pa.array([0] * values, pa.int32()), pa.array(["x" * (1 << 18)]))
    rows = pa.ListArray.from_arrays(pa.array([0] * count + [values], pa.int32()), texts)
    return parquet(table_of(count).append_column("texts", rows), compression="zstd")


def a_billion_rows_that_repeat_one() -> bytes:
    data = parquet(table_of(1).select(["id", "tokens", "voice_id"]), compression="none")
    for chunk in (ID, VOICE):
        data = with_page(data, chunk, level_runs((1, BILLION)) + b"\x01" + run_of(0, BILLION), BILLION)
    body = level_runs((0, BILLION)) + level_runs((3, BILLION)) + b"\x01" + run_of(0, BILLION)
    return claimed_rows(with_page(data, TOKENS, body, BILLION), BILLION)


def a_page_of_zeros() -> bytes:
    zeros = 400 << 20
    body = pa.compress(bytes(zeros), "zstd", asbytes=True)
    data = parquet(table_of(1, text=["x"]), compression="zstd", use_dictionary=False)

    def change(number: int, found: list[Page]) -> list[Page]:
        if number != EXTRA:
            return found
        put(found[0].header, PAGE_COMPRESSED, len(body))
        put(found[0].header, PAGE_UNCOMPRESSED, zeros)
        return [Page(found[0].header, body)]

    return rebuilt(data, change)


def a_page_that_claims_two_gigabytes() -> bytes:
    return with_headers(plain(), TOKENS, lambda header: put(header, PAGE_UNCOMPRESSED, 2**31 - 1))


def a_dictionary_of_one_long_text() -> bytes:
    count = 8_192
    long = pa.DictionaryArray.from_arrays(pa.array([0] * count, pa.int32()), pa.array(["x" * (1 << 18)]))
    return parquet(table_of(count).append_column("text", long), compression="zstd")


def bytes_of_fixed_width_that_are_all_null() -> bytes:
    data = plain(4_096, raw=pa.nulls(4_096, pa.binary(4)))

    def change(footer: Struct) -> None:
        element = next(each for each in footer[SCHEMA][1][1] if each[NAME][1] == b"raw")
        put(element, TYPE_LENGTH, 1 << 28)
        footer.pop(KEY_VALUES)  # the schema that Arrow has kept of it

    return forged(data, change)


def lists_of_fixed_width_that_are_all_null() -> bytes:
    # Their width is in Arrow's own schema alone: that of an empty file is put into this one.
    wide = footer_of(parquet(table_of(0, vector=pa.nulls(0, pa.list_(pa.float32(), 1 << 26)))))
    data = plain(64, vector=pa.nulls(64, pa.list_(pa.float32(), 4)))
    return forged(data, lambda footer: footer.update({KEY_VALUES: wide[KEY_VALUES]}))


BOMBS: dict[str, tuple[Callable[[], bytes], str]] = {
    build.__name__: (build, end)
    for build, end in (
        (a_list_of_a_billion_nulls, "scan"),
        (a_list_of_a_billion_nulls_under_a_modest_footer, "read"),
        (a_list_of_a_billion_equal_tokens, "scan"),
        (a_billion_nulls_in_one_row_of_many, "read"),
        (a_row_of_many_long_texts, "read"),
        (a_billion_rows_that_repeat_one, "scan"),
        (a_page_of_zeros, "read"),
        (a_page_that_claims_two_gigabytes, "read"),
        (a_dictionary_of_one_long_text, "used"),
        (bytes_of_fixed_width_that_are_all_null, "read"),
        (lists_of_fixed_width_that_are_all_null, "read"),
    )
}


@pytest.fixture(scope="module")
def exploded(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """What became of each bomb, in a child process under a limit of memory."""
    folder = tmp_path_factory.mktemp("bombs")
    for name, (build, _) in BOMBS.items():
        (folder / name).write_bytes(build())
    command = [sys.executable, "-m", "tests.fuzz", "--use", *(str(folder / name) for name in BOMBS)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=10 * MOST_SECONDS * len(BOMBS))
    ends = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == 0, f"exit code {done.returncode} after {len(ends)} of {list(BOMBS)}: {done.stderr}"
    return {end["name"]: end for end in ends}


@pytest.mark.parametrize("name", BOMBS)
def test_a_small_file_takes_all_memory_or_time(exploded: dict[str, dict[str, Any]], name: str) -> None:
    end = exploded[name]
    assert end["end"] == BOMBS[name][1]
    assert end["seconds"] < MOST_SECONDS
    assert end["peak"] < MOST_MEMORY


def test_texts_that_repeat_the_one_before_are_decoded_by_the_thousand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pages, "MOST_AT_ONCE", 1 << 20)
    count, long = 600, "x" * 20_000
    path = tmp_path / "m.parquet"
    table = table_of(count, text=pa.array([long] * count))
    for options in ({"column_encoding": {"text": "DELTA_BYTE_ARRAY"}, "use_dictionary": False}, {}):
        path.write_bytes(parquet(table, **options))
        assert path.stat().st_size < 100_000
        sizes = sizes_read(path, monkeypatch)
        assert sum(sizes) == count
        assert max(sizes) <= 64


def sizes_read(path: Path, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Rows of each batch that a manifest is decoded in."""
    sizes: list[int] = []
    plain_batches = manifest_module._batches

    def watched(*arguments: Any) -> Any:
        for batch in plain_batches(*arguments):
            sizes.append(batch.num_rows)
            yield batch

    with monkeypatch.context() as patch:
        patch.setattr(manifest_module, "_batches", watched)
        Manifest.scan(str(path)).read([Span(0, 0, 600)])
    return sizes


def test_a_shard_whose_rows_take_gigabytes_is_read_to_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(manifest_module, "MOST_READ", 1 << 20)
    path = tmp_path / "m.parquet"
    path.write_bytes(plain(300, text=["x" * 10_000] * 300))
    with pytest.raises(InputError, match=r"m\.parquet: rows 0 to 300 take more than .* smaller shard_rows"):
        Manifest.scan(str(path)).read([Span(0, 0, 300)])


# --- lies -------------------------------------------------------------------------------------------------------------


def with_headers(data: bytes, chunk: int, change: Callable[[Struct], object]) -> bytes:
    """The file with the headers of a column chunk's data pages changed."""

    def apply(number: int, found: list[Page]) -> list[Page]:
        for page in found:
            if number == chunk and DICTIONARY_PAGE not in page.header:
                change(page.header)
        return found

    return rebuilt(data, apply)


def claimed_rows(data: bytes, rows: int) -> bytes:
    """The file under a footer that claims so many rows in its last row group, and in all."""

    def change(footer: Struct) -> None:
        group = footer[ROW_GROUPS][1][1][-1]
        put(footer, NUM_ROWS, footer[NUM_ROWS][1] - group[GROUP_ROWS][1] + rows)
        put(group, GROUP_ROWS, rows)

    return forged(data, change)


def columns_by_the_billion(data: bytes) -> bytes:
    footer = bytearray(b"\x15\x02\x19\xfc") + varint(2**31 - 1)  # version 2, then a list of that many structs
    return closed(data[: -8 - int.from_bytes(data[-8:-4], "little")], bytes(footer))


def a_schema_within_a_schema(data: bytes) -> bytes:
    def change(footer: Struct) -> None:
        elements = footer[SCHEMA][1][1]
        group = {3: (I32, 1), NAME: (BINARY, b"g"), NUM_CHILDREN: (I32, 1)}
        put(elements[0], NUM_CHILDREN, elements[0][NUM_CHILDREN][1] + 1)
        footer[SCHEMA] = (LIST, (STRUCT, [*elements, *[group] * 100_000, elements[1]]))
        footer.pop(KEY_VALUES)

    return forged(data, change)


LIES: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "rows by the quadrillion": (lambda data: claimed_rows(data, 10**15), "claims 1000000000000000 rows, in a file of"),
    "rows below none": (lambda data: claimed_rows(data, -5), "claims -5 rows"),
    "rows that the groups have not": (
        lambda data: forged(data, lambda footer: put(footer, NUM_ROWS, 41)),
        "claims 41 rows, its row groups 40",
    ),
    "tokens beyond number": (
        lambda data: forged(data, lambda footer: put(list(chunks(footer))[TOKENS], NUM_VALUES, 2**62)),
        "claims 4611686018427387904 tokens in a row group",
    ),
    "tokens below none": (
        lambda data: forged(data, lambda footer: put(list(chunks(footer))[TOKENS], NUM_VALUES, -1)),
        "tokens in a row group",
    ),
    "columns by the billion": (columns_by_the_billion, "not a Parquet file"),
    "a schema a hundred thousand deep": (a_schema_within_a_schema, "too deep"),
    "more children than there are": (
        lambda data: forged(data, lambda footer: put(footer[SCHEMA][1][1][0], NUM_CHILDREN, 2**31 - 1)),
        "not a Parquet file",
    ),
    "fewer children than none": (
        lambda data: forged(data, lambda footer: put(footer[SCHEMA][1][1][0], NUM_CHILDREN, -1)),
        "m.parquet: n",
    ),
    "a name that is no text": (
        lambda data: forged(data, lambda footer: put(footer[SCHEMA][1][1][1], NAME, b"\xff\xfe")),
        "m.parquet: n",
    ),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_footer_that_lies_is_planned_with(tmp_path: Path, lie: str) -> None:
    change, message = LIES[lie]
    path = tmp_path / "m.parquet"
    path.write_bytes(change(plain(40)))
    with pytest.raises(InputError) as caught:
        Manifest.scan(str(path))
    assert message in str(caught.value)


@pytest.mark.parametrize("rows", [39, 41, 60])
def test_a_row_group_of_other_than_the_claimed_rows_loses_or_doubles_some(tmp_path: Path, rows: int) -> None:
    """Ten rows are in each row group; the last one claims others."""
    path = tmp_path / "m.parquet"
    path.write_bytes(claimed_rows(parquet(table_of(40), row_group_size=10), rows - 30))
    manifest = Manifest.scan(str(path))
    assert manifest.read([Span(0, 10, 30)])["id"].to_pylist() == [f"u{n}" for n in range(10, 30)]
    if rows < 40:  # fewer are read than there are: the footer is what was planned with
        assert manifest.read([Span(0, 30, rows)])["id"].to_pylist() == [f"u{n}" for n in range(30, rows)]
    else:
        with pytest.raises(InputError, match=rf"cannot read rows 30 to {rows} \(row group 3\): "):
            manifest.read([Span(0, 30, rows)])


@pytest.mark.parametrize("chunk", [ID, TOKENS, VOICE])
def test_page_headers_that_lie_are_believed(tmp_path: Path, chunk: int) -> None:
    lies: dict[str, Callable[[Struct], object]] = {
        "its stored bytes": lambda header: put(header, PAGE_COMPRESSED, 2**31 - 1),
        "fewer stored bytes than none": lambda header: put(header, PAGE_COMPRESSED, -1),
        "fewer bytes than none": lambda header: put(header, PAGE_UNCOMPRESSED, -1),
        "values below none": lambda header: put(header[DATA_PAGE][1], PAGE_VALUES, -1),
        "values by the billion": lambda header: put(header[DATA_PAGE][1], PAGE_VALUES, 2**31 - 1),
        "none of it": lambda header: header.clear(),
    }
    path = tmp_path / "m.parquet"
    for change in lies.values():
        path.write_bytes(with_headers(plain(40), chunk, change))
        manifest = Manifest.scan(str(path))
        with pytest.raises(InputError, match=r"m\.parquet: cannot read rows 5 to 9 \(row group 0\)"):
            manifest.read([Span(0, 5, 9)])


def test_a_chunk_that_is_said_to_lie_outside_of_the_file_is_looked_for_there(tmp_path: Path) -> None:
    path = tmp_path / "m.parquet"
    for offset in (-5, 0, 2**40):
        path.write_bytes(forged(plain(40), lambda footer, at=offset: put(list(chunks(footer))[ID], 9, at)))
        with pytest.raises(InputError, match=r"cannot read rows 0 to 40 \(row group 0\): column 'id': its pages are"):
            Manifest.scan(str(path)).read([Span(0, 0, 40)])


def test_a_damaged_row_group_is_named_and_the_others_are_read(tmp_path: Path) -> None:
    data = bytearray(parquet(table_of(40), row_group_size=10))
    chunk = footer_of(bytes(data))[ROW_GROUPS][1][1][2][COLUMNS][1][1][ID][CHUNK][1]
    start = chunk[9][1]
    data[start : start + 20] = bytes(20)
    path = tmp_path / "m.parquet"
    path.write_bytes(bytes(data))
    manifest = Manifest.scan(str(path))
    for good in (Span(0, 0, 20), Span(0, 30, 40)):
        assert manifest.read([good]).num_rows == good.stop - good.start
    with pytest.raises(InputError, match=r"m\.parquet: cannot read rows 15 to 35 \(row group 2\): "):
        manifest.read([Span(0, 15, 35)])
