"""Ordinary files that store much in little: read, at a cost that has an end."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from jobs.errors import InputError
from jobs.manifest import manifest as manifest_module
from jobs.manifest.manifest import Manifest, Span
from jobs.parquet import pages
from jobs.parquet.footer import Footer, Group
from tests.jobs.forged_parquet import (
    CODEC,
    HADOOP_LZ4,
    PAGE_COMPRESSED,
    Page,
    chunks,
    forged,
    parquet,
    put,
    rebuilt,
)
from tests.jobs.parquet.test_hostile_parquet import TOKENS, table_of


def many_rows(count: int, **columns: Any) -> pa.Table:
    lists = pa.ListArray.from_arrays(np.arange(count + 1, dtype=np.int32), np.arange(count, dtype=np.int32) % 6561)
    ids = pa.array(
        [f"speaker{n % 977:04d}/utterance-{n * 7919 % 1_000_003:09d}-of-a-long-recording" for n in range(count)]
    )
    return pa.table({"id": ids, "tokens": lists, "voice_id": pa.array(["v"] * count), **columns})


def lists_of(values: pa.Array, each: int) -> pa.ListArray:
    return pa.ListArray.from_arrays(np.arange(0, len(values) + 1, each, dtype=np.int32), values)


def phones(count: int) -> pa.Array:
    return pa.array([f"phone{n}" for n in range(70)]).take(pa.array(np.arange(count) * 31 % 70))


def phonemes() -> pa.Table:
    return many_rows(40_000, phonemes=lists_of(phones(1_600_000), 40))


def phonemes_with_times() -> pa.Table:
    values = pa.StructArray.from_arrays([phones(1_600_000), np.arange(1_600_000) % 250], ["phone", "start"])
    return many_rows(40_000, phonemes=lists_of(values, 40))


def maps() -> pa.Table:
    keys = phones(1_600_000)
    offsets = np.arange(0, len(keys) + 1, 40, dtype=np.int32)
    return many_rows(40_000, lengths=pa.MapArray.from_arrays(offsets, keys, np.arange(len(keys)) % 9))


def lists_within_lists() -> pa.Table:
    return many_rows(40_000, words=lists_of(lists_of(phones(1_600_000), 8), 5))


def masks() -> pa.Table:
    return many_rows(100_000, mask=lists_of(pa.array(np.ones(25_000_000, np.int8)), 250))


def equal_tokens() -> pa.Table:
    table = many_rows(100_000)
    return table.set_column(TOKENS, "tokens", lists_of(pa.array(np.full(25_000_000, 4_299, np.int16)), 250))


def many_ids() -> pa.Table:
    return many_rows(80_000)


def one_long_text() -> pa.Table:
    return many_rows(80_000, text=pa.array(["short"] * 79_999 + ["long " * 300_000]))


DELTA_IDS = {
    "column_encoding": {"id": "DELTA_BYTE_ARRAY"},
    "use_dictionary": False,
    "data_page_size": 4 << 20,
    "max_rows_per_page": 80_000,
}
DELTA_PHONES = {"column_encoding": {"phonemes.list.element": "DELTA_BYTE_ARRAY"}, "use_dictionary": False}
ORDINARY: dict[str, tuple[Callable[[], pa.Table], dict[str, Any]]] = {
    "texts in lists": (phonemes, {}),
    "texts in lists, version 2": (phonemes, {"data_page_version": "2.0", "compression": "zstd"}),
    "texts in structs in lists": (phonemes_with_times, {}),
    "maps": (maps, {"compression": "gzip"}),
    "texts in lists in lists": (lists_within_lists, {"compression": "none"}),
    "lists of equal numbers": (masks, {"compression": "zstd"}),
    "equal tokens": (equal_tokens, {"compression": "zstd"}),
    "ids as differences": (many_ids, DELTA_IDS),
    "ids as differences, version 2": (many_ids, {**DELTA_IDS, "data_page_version": "2.0"}),
    "texts in lists as differences": (phonemes, DELTA_PHONES),
    "one long text in a dictionary": (one_long_text, {"dictionary_pagesize_limit": 8 << 20}),
}


@pytest.mark.parametrize("name", ORDINARY)
def test_an_ordinary_manifest_is_taken_for_a_bomb(tmp_path: Path, name: str) -> None:
    build, options = ORDINARY[name]
    table = build()
    path = tmp_path / "m.parquet"
    path.write_bytes(parquet(table, row_group_size=len(table), **options))
    manifest = Manifest.scan(str(path))
    for start in (0, len(table) - 500):
        assert manifest.read([Span(0, start, start + 500)]).equals(
            table.slice(start, 500).select(manifest.columns.names)
        )


def test_a_dictionary_in_hadoops_frames_is_taken_for_one_long_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each block comes after its size and the size that it is stored in."""

    def frame(number: int, found: list[Page]) -> list[Page]:
        for page in found:
            stored = pa.compress(page.body, "lz4_raw", asbytes=True)
            page.body = len(page.body).to_bytes(4, "big") + len(stored).to_bytes(4, "big") + stored
            put(page.header, PAGE_COMPRESSED, len(page.body))
        return found

    table = phonemes().slice(0, 4_000)
    data = rebuilt(parquet(table, compression="none"), frame)
    path = tmp_path / "m.parquet"
    path.write_bytes(forged(data, lambda footer: [put(chunk, CODEC, HADOOP_LZ4) for chunk in chunks(footer)]))
    monkeypatch.setattr(pages, "MOST_OF_LIST", 60 * 8)
    monkeypatch.setattr(pages, "MOST_AT_ONCE", 1 << 20)
    assert Manifest.scan(str(path)).read([Span(0, 0, 4_000)]).equals(table)


def test_what_is_decoded_on_the_way_to_the_rows_has_no_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(manifest_module, "MOST_DECODED", 1 << 20)
    path = tmp_path / "m.parquet"
    path.write_bytes(parquet(many_rows(40_000)))
    assert Manifest.scan(str(path)).read([Span(0, 0, 10)]).num_rows == 10
    with pytest.raises(InputError, match=r"row group 0\): its first \d+ rows take more than"):
        Manifest.scan(str(path)).read([Span(0, 39_990, 40_000)])


def test_every_span_costs_the_footer_of_the_whole_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "m.parquet"
    path.write_bytes(parquet(table_of(400), row_group_size=2))
    manifest = Manifest.scan(str(path))
    parsed: list[int] = []
    plain_group = Footer._group

    def counted(footer: Footer, reader: Any) -> Group:
        parsed.append(reader.at)
        return plain_group(footer, reader)

    monkeypatch.setattr(Footer, "_group", counted)
    manifest.read([Span(0, 0, 3)])
    assert len(parsed) == 202  # all 200 once, and the two that hold the rows
    parsed.clear()
    ids = manifest.read([Span(0, 301, 305), Span(0, 399, 400)])["id"].to_pylist()
    assert ids == [f"u{n}" for n in (301, 302, 303, 304, 399)]
    assert len(parsed) == 4
