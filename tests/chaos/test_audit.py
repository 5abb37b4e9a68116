"""Outputs that are damaged on purpose: a checker that finds nothing has to be known to find what is there."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile

from jobs.finish import finalise
from jobs.storage.folders import Folder
from tests.chaos.audit import Output, audit, made_again, tried_again, verified
from tests.chaos.watch import committed, tries_in
from tests.jobs import made_job

ROWS = 14  # of which two fail


@pytest.fixture
def output(tmp_path: Path) -> Path:
    """A finished output whose rows have numbers."""
    return _output(tmp_path, "parquet")


def _output(folder: Path, shard_format: str) -> Path:
    manifest = made_job.write_manifest(folder / "manifest.parquet", ROWS, number=list(range(ROWS)))
    ledger = made_job.start(str(folder / "out"), manifest, format=shard_format)
    made_job.make_all(ledger)
    finalise(ledger)
    return folder / "out"


@pytest.fixture
def reference(output: Path) -> Output:
    """What the output holds before it is damaged."""
    return _read(output)


def _read(output: Path) -> Output:
    return Output.read(Folder(str(output)))


def _codes(output: Path, reference: Output) -> set[str]:
    return {finding.code for finding in audit(_read(output), reference, ROWS)}


def _shards(output: Path) -> list[Path]:
    return sorted((output / "audio").iterdir())


def _rewrite(path: Path, change: Callable[[pa.Table], pa.Table]) -> None:
    pq.write_table(change(pq.read_table(path)), path)


def test_an_output_that_is_whole_is_found_whole(output: Path, reference: Output) -> None:
    assert audit(reference, reference, ROWS) == []
    assert verified(Folder(str(output))) == []


@pytest.mark.parametrize("shard_format", ["webdataset", "lhotse"])
def test_another_format_hides_what_it_holds(output: Path, tmp_path: Path, shard_format: str) -> None:
    (tmp_path / "other").mkdir()
    other = _output(tmp_path / "other", shard_format)
    rows, wanted = _read(other), _read(output)
    assert audit(rows, rows, ROWS) == []
    assert (sorted(rows.made), sorted(rows.failed)) == (sorted(wanted.made), sorted(wanted.failed))
    tar = next(path for path in _shards(other) if path.suffix == ".tar")
    tar.with_name(tar.name.replace("0000000-", "0000000-f")).write_bytes(tar.read_bytes())
    assert "stray" in _codes(other, rows)
    tar.unlink()
    assert {"stray", "missing"} <= _codes(other, rows)


def test_one_file_of_two_passes_for_a_whole_shard(tmp_path: Path) -> None:
    output = _output(tmp_path, "lhotse")
    rows = _read(output)
    cuts, *_ = sorted((output / "audio").glob("cuts.*"))
    stray = cuts.with_name(cuts.name.replace("0000000-", "0000000-f"))
    stray.write_bytes(cuts.read_bytes())
    assert _codes(output, rows) == {"stray"}
    stray.unlink()
    data = cuts.read_bytes()
    cuts.unlink()
    assert {"unknown", "lost"} <= _codes(output, rows)
    assert set(tries_in(Folder(str(output))).values()) == set(committed(Folder(str(output))))
    cuts.write_bytes(data)
    assert audit(_read(output), rows, ROWS) == []


def test_a_row_that_is_missing_is_lost(output: Path, reference: Output) -> None:
    _rewrite(_shards(output)[0], lambda table: table.slice(1))
    assert "lost" in _codes(output, reference)


def test_a_failure_that_is_missing_is_lost(output: Path, reference: Output) -> None:
    _rewrite(output / "failures.parquet", lambda table: table.slice(1))
    assert _codes(output, reference) == {"lost", "failures"}


def test_a_row_that_is_there_twice_is_doubled(output: Path, reference: Output) -> None:
    _rewrite(_shards(output)[0], lambda table: pa.concat_tables([table, table.slice(0, 1)]))
    assert "doubled" in _codes(output, reference)


def test_a_row_that_was_made_and_failed_is_doubled(output: Path, reference: Output) -> None:
    made = pq.read_table(_shards(output)[0])["number"][0].as_py()

    def renumbered(table: pa.Table) -> pa.Table:
        at = table.schema.get_field_index("number")
        return table.set_column(at, "number", [[made, *table["number"].to_pylist()[1:]]])

    _rewrite(output / "failures.parquet", renumbered)
    assert {"doubled", "lost", "failures"} <= _codes(output, reference)


def test_a_file_that_the_index_does_not_name_is_stray(output: Path, reference: Output) -> None:
    shard = _shards(output)[0]
    shard.with_name("0000000-ffffffffffff.parquet").write_bytes(shard.read_bytes())
    assert {"stray", "doubled"} <= _codes(output, reference)


def test_a_file_that_is_gone_is_missing(output: Path, reference: Output) -> None:
    _shards(output)[-1].unlink()
    assert {"missing", "lost"} <= _codes(output, reference)


def test_an_index_without_one_of_its_rows_is_wrong(output: Path, reference: Output) -> None:
    _rewrite(output / "index.parquet", lambda table: table.slice(0, table.num_rows - 1))
    assert _codes(output, reference) == {"index"}


def test_an_index_with_other_lengths_than_the_audio_is_wrong(output: Path, reference: Output) -> None:
    def longer(table: pa.Table) -> pa.Table:
        samples = [table["samples"][0].as_py() + 1, *table["samples"].to_pylist()[1:]]
        return table.set_column(table.schema.get_field_index("samples"), "samples", [samples])

    _rewrite(output / "index.parquet", longer)
    assert _codes(output, reference) == {"index"}


def test_a_single_sample_that_changed_is_found(output: Path, reference: Output) -> None:
    def quieter(table: pa.Table) -> pa.Table:
        clips = table["audio"].to_pylist()
        samples, rate = soundfile.read(io.BytesIO(clips[0]["bytes"]), dtype="int16")
        samples[len(samples) // 2] ^= 1
        buffer = io.BytesIO()
        soundfile.write(buffer, np.asarray(samples), rate, format="FLAC", subtype="PCM_16")
        clips[0]["bytes"] = buffer.getvalue()
        at = table.schema.get_field_index("audio")
        return table.set_column(at, "audio", pa.array(clips, table.schema.field("audio").type))

    _rewrite(_shards(output)[0], quieter)
    assert _codes(output, reference) == {"changed"}


def test_duplicates_that_are_others_than_undisturbed_are_found(output: Path, reference: Output) -> None:
    pq.write_table(pq.read_table(output / "index.parquet").slice(0, 1), output / "duplicates.parquet")
    assert _codes(output, reference) == {"duplicates"}


def test_what_verify_finds_is_a_finding(output: Path) -> None:
    with _shards(output)[0].open("ab") as file:
        file.write(b"x")
    assert {finding.code for finding in verified(Folder(str(output)))} == {"verify"}


def test_a_shard_whose_commit_is_another_one_was_made_again(output: Path) -> None:
    before = committed(Folder(str(output)))
    assert made_again(before, before) == []
    assert made_again({0: before[0]}, before) == []  # others may have come
    assert [finding.count for finding in made_again(before, {**before, 0: "f" * 12, 2: "e" * 12})] == [2]
    assert [finding.count for finding in made_again(before, {0: before[0]})] == [len(before) - 1]


def test_a_file_of_a_shard_that_was_committed_long_ago_is_a_try_too_many(output: Path) -> None:
    folder = Folder(str(output))
    before = tries_in(folder)
    assert set(before.values()) == set(committed(folder))
    shard = _shards(output)[1]
    shard.with_name("0000001-ffffffffffff.parquet").write_bytes(b"torn")
    assert tried_again({0, 2}, before, tries_in(folder)) == []
    assert [finding.count for finding in tried_again({0, 1}, before, tries_in(folder))] == [1]
