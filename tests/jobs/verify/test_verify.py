"""Every kind of damage is found, and nothing else is called damage."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from jobs.errors import InputError
from jobs.finish import finalise
from jobs.ledger.ledger import Ledger
from jobs.ledger.records import CommitRecord, StoredFile, ids_digest
from jobs.verify.verify import verify
from tests.jobs.made_job import make, make_all, plan_of, start, write_manifest


@pytest.fixture(params=["parquet", "webdataset", "lhotse"])
def ledger(request: pytest.FixtureRequest, tmp_path: Path, manifest: str) -> Ledger:
    """A finished job of local files."""
    made = start(str(tmp_path / "out"), manifest, format=request.param)
    make_all(made)
    finalise(made)
    return made


def found(ledger: Ledger) -> set[str]:
    result = verify(ledger.folder.url)
    assert result.exit_code == (1 if result.findings else 0)
    assert result.damage == len(result.findings)
    return {finding.code for finding in result.findings}


def record_of(ledger: Ledger, shard: int) -> CommitRecord:
    return list(ledger.records())[shard]


def rewrite(ledger: Ledger, shard: int, **changes: Any) -> None:
    """Another record under the same name."""
    name = ledger.record_names(0)[shard]
    ledger.folder.put(name, replace(record_of(ledger, shard), **changes).to_bytes())


def replaced(ledger: Ledger, file: StoredFile, data: bytes) -> StoredFile:
    """Other bytes in a file, with a record that vouches for them."""
    ledger.folder.put(file.name, data)
    return StoredFile(name=file.name, bytes=len(data), sha256=hashlib.sha256(data).hexdigest())


def change_table(ledger: Ledger, name: str, change: Callable[[pa.Table], pa.Table]) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(change(pq.read_table(io.BytesIO(ledger.folder.read(name)))), buffer)
    return buffer.getvalue()


def change_index(ledger: Ledger, shard: int, change: Callable[[pa.Table], pa.Table]) -> None:
    file = record_of(ledger, shard).index
    assert file is not None
    rewrite(ledger, shard, index=replaced(ledger, file, change_table(ledger, file.name, change)))


def with_column(table: pa.Table, name: str, values: list[Any]) -> pa.Table:
    at = table.column_names.index(name)
    return table.set_column(at, table.schema.field(name), pa.array(values, table.schema.field(name).type))


def test_what_is_whole_is_called_whole(ledger: Ledger) -> None:
    told: list[tuple[int, int]] = []
    result = verify(ledger.folder.url, on_shard=lambda done, total: told.append((done, total)))
    assert result.findings == []
    assert (result.finished, result.shards_checked, result.shards_total, result.rows_checked) == (True, 4, 4, 12)
    assert result.notes == []
    assert result.exit_code == 0
    assert told == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_an_output_on_any_store_is_verified(place: str, manifest: str) -> None:
    made = start(place, manifest)
    make_all(made)
    finalise(made)
    assert verify(place).findings == []
    made.folder.delete(made.folder.list("audio/")[0])
    assert {finding.code for finding in verify(place).findings} == {"missing_file"}


def test_what_is_not_finished_is_no_damage(tmp_path: Path, manifest: str) -> None:
    made = start(str(tmp_path / "out"), manifest)
    make(made, 1)
    made.folder.put(made.attempt(2).audio_name("parquet"), b"of a try under way")
    result = verify(made.folder.url)
    assert (result.finished, result.findings, result.shards_checked, result.rows_checked) == (False, [], 1, 3)
    assert result.notes == ["the job is not finished: 1 of 4 shards are committed"]
    audio = record_of(made, 0).audio
    assert audio is not None
    made.folder.put(audio.name, b"torn")
    assert "damaged_file" in {finding.code for finding in verify(made.folder.url).findings}


def test_an_output_without_a_job_is_bad_input(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no job was begun here"):
        verify(str(tmp_path))


def test_a_manifest_that_is_gone_is_a_note(ledger: Ledger, manifest: str) -> None:
    Path(manifest).unlink()
    result = verify(ledger.folder.url)
    assert result.findings == []
    assert len(result.notes) == 1
    assert "not held against the manifest" in result.notes[0]


def test_a_missing_file_is_found(ledger: Ledger) -> None:
    for file in record_of(ledger, 1).files():
        data = ledger.folder.read(file.name)
        ledger.folder.delete(file.name)
        assert "missing_file" in found(ledger), file.name
        ledger.folder.put(file.name, data)
    assert found(ledger) == set()


def test_a_flipped_bit_is_found_in_every_file(ledger: Ledger) -> None:
    for file in record_of(ledger, 1).files():
        data = ledger.folder.read(file.name)
        for at in (0, len(data) // 2, len(data) - 9):
            flipped = bytearray(data)
            flipped[at] ^= 1
            ledger.folder.put(file.name, bytes(flipped))
            assert "damaged_file" in found(ledger), (file.name, at)
        ledger.folder.put(file.name, data[:-1])
        assert "damaged_file" in found(ledger)
        ledger.folder.put(file.name, data)
    assert found(ledger) == set()


def test_a_missing_record_and_a_damaged_one_are_found(ledger: Ledger) -> None:
    name = ledger.record_names(0)[2]
    data = ledger.folder.read(name)
    ledger.folder.put(name, b"{}")
    assert "record" in found(ledger)
    ledger.folder.delete(name)
    assert {"missing_shard", "table", "stray", "totals"} <= found(ledger)
    ledger.folder.put(name, data)
    assert found(ledger) == set()


def test_a_file_that_no_record_names_is_stray(ledger: Ledger) -> None:
    ledger.folder.put("audio/0000001-feedfeedfeed.parquet", b"x")
    result = verify(ledger.folder.url)
    assert [(f.code, f.where) for f in result.findings] == [("stray", "audio/0000001-feedfeedfeed.parquet")]


@pytest.mark.parametrize("name", ["index.parquet", "failures.parquet"])
def test_a_table_that_differs_from_its_parts_is_found(ledger: Ledger, name: str) -> None:
    whole = ledger.folder.read(name)
    for change in (
        lambda table: table.slice(1),
        lambda table: table.slice(0, table.num_rows - 1),
        lambda table: pa.concat_tables([table, table.slice(0, 1)]),
        lambda table: table.drop_columns(["voice_id"]),
        lambda table: with_column(table, "voice_id", ["other"] * table.num_rows),
    ):
        ledger.folder.put(name, change_table(ledger, name, change))
        assert found(ledger) == {"table"}
        ledger.folder.put(name, whole)
    ledger.folder.put(name, whole[:-10])
    assert found(ledger) == {"table"}
    ledger.folder.delete(name)
    assert found(ledger) == {"table"}


def test_values_that_do_not_equal_themselves_are_called_damage(tmp_path: Path) -> None:
    nan, marks = float("nan"), pa.array([f"mark {n}" for n in range(14)])
    own = {
        "snr": pa.array([nan if n % 2 else None for n in range(14)], pa.float32()),
        "mark": pa.DictionaryArray.from_arrays(pa.array(range(14)), marks),
        "deep": [{"a": [nan, float(n)], "b": [{"c": nan}]} for n in range(14)],
        "marks": pa.ListArray.from_arrays(range(15), pa.DictionaryArray.from_arrays(pa.array(range(14)), marks)),
        "pair": pa.array([[nan, 1.0]] * 14, pa.list_(pa.float64(), 2)),
        "large": pa.array([[nan], *([None] * 13)], pa.large_list(pa.float16())),
        "pairs": pa.array([[("k", nan)]] * 14, pa.map_(pa.string(), pa.float64())),
    }
    manifest = write_manifest(tmp_path / "in" / "manifest.parquet", **own)
    made = start(str(tmp_path / "out"), manifest)
    make_all(made)
    finalise(made)
    assert verify(made.folder.url).findings == []
    name = "failures.parquet"
    whole = made.folder.read(name)
    held = pq.read_table(io.BytesIO(whole)).to_pylist()
    others = {
        "snr": 0.0,
        "mark": "another",
        "deep": {"a": [nan, 0.0], "b": [{"c": nan}]},
        "marks": [],
        "pair": [1.0, nan],
        "large": [nan],
        "pairs": [("k", 1.0)],
    }
    assert len(held) == 2
    assert others.keys() == own.keys()
    for column, value in others.items():
        changed = [held[0][column], value]
        made.folder.put(name, change_table(made, name, lambda table, at=column, to=changed: with_column(table, at, to)))
        assert found(made) == {"table"}, column
    made.folder.put(name, whole)
    assert found(made) == set()


def test_totals_and_duplicates_that_do_not_fit_are_found(ledger: Ledger) -> None:
    totals = json.loads(ledger.folder.read("ledger/finished.json"))
    ledger.folder.put("ledger/finished.json", json.dumps(totals | {"rows_done": 11}).encode())
    assert found(ledger) == {"totals"}
    ledger.folder.put("ledger/finished.json", json.dumps(totals | {"duplicates": 1}).encode())
    assert found(ledger) == {"table"}


def test_a_row_that_vanished_from_a_shard_is_found(ledger: Ledger) -> None:
    """With a record that vouches for the loss, so that no checksum helps."""
    change_index(ledger, 0, lambda table: table.slice(0, 3))
    assert {"row_missing", "audio", "index", "table"} <= found(ledger)


def test_a_row_that_is_there_twice_or_as_another_is_found(ledger: Ledger) -> None:
    change_index(ledger, 0, lambda table: with_column(table, "id", ["u0", "u0", "é\n'\"", "u3"]))
    assert {"row_missing", "row_twice", "index"} <= found(ledger)
    change_index(ledger, 0, lambda table: with_column(table, "id", ["u0", "who", "é\n'\"", "u3"]))
    assert {"row_missing", "row_unknown", "index"} <= found(ledger)


def test_ids_other_than_those_committed_are_found(ledger: Ledger, manifest: str) -> None:
    """Of failed rows too, and where there is no manifest to hold them against."""
    rewrite(ledger, 1, ids="0" * 64)
    assert found(ledger) == {"ids"}
    rewrite(ledger, 1, ids=ids_digest(plan_of(manifest).manifest.read(ledger.plan.shard(1).spans)["id"]))
    assert found(ledger) == set()
    file = record_of(ledger, 1).failures
    assert file is not None
    data = change_table(ledger, file.name, lambda table: with_column(table, "id", ["u55"]))
    rewrite(ledger, 1, failures=replaced(ledger, file, data))
    assert {"ids", "table"} == found(ledger)
    Path(manifest).unlink()
    assert {"ids", "table"} == found(ledger)


def test_a_row_with_another_voice_is_found(ledger: Ledger) -> None:
    change_index(ledger, 0, lambda table: with_column(table, "voice_id", ["v9"] * 4))
    assert {"index", "table"} <= found(ledger)


def test_samples_durations_and_hashes_that_lie_are_found(ledger: Ledger) -> None:
    change_index(ledger, 0, lambda table: with_column(table, "duration", [1.0] * 4))
    assert {"index", "table"} == found(ledger)
    change_index(ledger, 1, lambda table: with_column(table, "sha256", ["0" * 64] * 3))
    assert {"audio", "index", "table"} == found(ledger)
    change_index(ledger, 2, lambda table: with_column(table, "samples", pc.add(table["samples"], 1).to_pylist()))
    assert {"length", "audio", "index", "table"} == found(ledger)


def test_a_failure_that_is_missing_doubled_or_foreign_is_found(ledger: Ledger) -> None:
    file = record_of(ledger, 1).failures
    assert file is not None
    whole = ledger.folder.read(file.name)
    for change, code in (
        (lambda table: table.slice(0, 0), "row_missing"),
        (lambda table: pa.concat_tables([table, table]), "row_twice"),
        (lambda table: with_column(table, "row", [13]), "row_unknown"),
    ):
        rewrite(ledger, 1, failures=replaced(ledger, file, change_table(ledger, file.name, change)))
        assert code in found(ledger)
        ledger.folder.put(file.name, whole)


def test_audio_of_the_wrong_length_rate_or_kind_is_found(tmp_path: Path, manifest: str) -> None:
    import numpy as np
    import soundfile

    def clip(samples: int, rate: int = 24_000, channels: int = 1) -> bytes:
        buffer = io.BytesIO()
        soundfile.write(buffer, np.zeros((samples, channels), np.float32), rate, format="FLAC")
        return buffer.getvalue()

    made = start(str(tmp_path / "out"), manifest)
    make_all(made)
    finalise(made)
    audio, index = record_of(made, 0).audio, record_of(made, 0).index
    assert audio is not None
    assert index is not None
    samples = pq.read_table(io.BytesIO(made.folder.read(index.name)))["samples"][1].as_py()
    for bad, code in (
        (clip(samples - 1), "length"),
        (clip(samples, 22_050), "length"),
        (clip(samples, channels=2), "length"),
        (clip(samples)[: len(clip(samples)) // 2], "audio"),
        (b"", "audio"),
        (b"no audio at all", "audio"),
    ):

        def swap(table: pa.Table, bad: bytes = bad) -> pa.Table:
            clips = table["audio"].to_pylist()
            clips[1]["bytes"] = bad
            return with_column(table, "audio", clips)

        def hashed(table: pa.Table, bad: bytes = bad) -> pa.Table:
            hashes = table["sha256"].to_pylist()
            hashes[1] = hashlib.sha256(bad).hexdigest()
            return with_column(table, "sha256", hashes)

        rewrite(made, 0, audio=replaced(made, audio, change_table(made, audio.name, swap)))
        change_index(made, 0, hashed)
        assert found(made) - {"table"} == {code}, bad[:20]
    rewrite(made, 0, audio=replaced(made, audio, b"no parquet"))
    assert "unreadable_file" in found(made)


def test_a_tar_that_ends_early_or_lost_a_member_is_found(tmp_path: Path, manifest: str) -> None:
    made = start(str(tmp_path / "out"), manifest, format="webdataset")
    make_all(made)
    finalise(made)
    audio = record_of(made, 0).audio
    assert audio is not None
    whole = made.folder.read(audio.name)
    for data, codes in (
        (whole[: len(whole) // 2], {"audio", "unreadable_file"}),
        (b"", {"unreadable_file"}),
        (whole[:1_000] + bytes(len(whole) - 1_000), {"audio", "unreadable_file"}),
    ):
        rewrite(made, 0, audio=replaced(made, audio, data))
        assert found(made) & codes


def test_endless_damage_is_counted_and_the_first_of_it_kept(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jobs.verify.findings.MAX_FINDINGS", 3)
    names = ledger.folder.list("audio/")
    for name in names:
        ledger.folder.delete(name)
    for number in range(5):
        ledger.folder.put(f"audio/{number}", b"x")
    result = verify(ledger.folder.url)
    assert len(result.findings) == 3
    assert result.damage == len(names) + 5
