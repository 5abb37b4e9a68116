"""The end of a job: its tables hold every row once, however often it was begun, by whatever it was done."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from benchmarks.simulation import MemoryStore
from jobs.errors import JobError, LeaseHeld, StorageError, Unfinished
from jobs.finish import Finisher, Task, finalise
from jobs.ledger.lease import Timing
from jobs.ledger.ledger import Ledger
from jobs.storage.folders import Folder
from jobs.verify.verify import verify
from tests.jobs.killing import Killed, killing
from tests.jobs.made_job import job_of, make, make_all, plan_of, prepare, start, table_in, write_manifest


def start_in_memory(manifest: str, *, conditional: bool, like: Ledger | None = None) -> Ledger:
    """A job in memory; ``like``: with the shards of another one."""
    store = MemoryStore()
    store.creates = conditional
    folder = Folder.of(store, "made-up://out")
    if like is None:
        return Ledger.start(folder, job_of("/made/up", manifest), plan_of(manifest))
    tables = ("index.parquet", "failures.parquet", "duplicates.parquet", "ledger/finished.json")
    for name in like.folder.list():
        if name not in tables:
            folder.put(name, like.folder.read(name))
    return Ledger.open(folder)


def test_a_finished_output_has_each_row_once_and_nothing_else(output: str, manifest: str) -> None:
    ledger = start(output, manifest)
    for shard in (3, 0, 2, 1):
        make(ledger, shard)
    stray = ledger.attempt(1)
    ledger.folder.put(stray.audio_name("parquet"), b"of a try that died")
    ledger.folder.put(stray.index_name, b"of a try that died")
    summary = finalise(ledger)
    assert (summary.shards, summary.rows_total, summary.rows_done, summary.rows_failed) == (4, 14, 12, 2)
    assert summary.exit_code == 3
    assert summary.speed > 0

    folder = Folder(output)
    index, failures = table_in(folder, "index.parquet"), table_in(folder, "failures.parquet")
    assert index["id"].to_pylist() == [
        "u0",
        "dir/../b.c",
        "é\n'\"",
        "u3",
        "u4",
        "u6",
        "u7",
        "u8",
        *(f"u{n}" for n in range(10, 14)),
    ]
    assert sum(index["samples"].to_pylist()) == summary.samples
    assert failures["id"].to_pylist() == ["u5", "u9"]
    assert failures["error"].to_pylist() == ["token_out_of_range", "null_tokens"]
    assert failures["row"].to_pylist() == [5, 9]
    assert failures.column_names == ["id", "voice_id", "error", "message", "manifest", "row", "text", "tokens"]
    assert set(folder.list("audio/")) == set(index["shard"].to_pylist())
    assert not folder.exists("duplicates.parquet")
    result = verify(output)
    assert result.findings == []
    assert result.finished


def test_finishing_needs_every_shard(output: str, manifest: str) -> None:
    ledger = start(output, manifest)
    make(ledger, 0)
    with pytest.raises(Unfinished, match="3 of 4 shards are not done; go on with: s3gen resume"):
        finalise(ledger)
    assert not ledger.folder.exists("index.parquet")


def test_a_finished_job_is_finished_once(output: str, manifest: str) -> None:
    ledger = start(output, manifest)
    make_all(ledger)
    first = finalise(ledger)
    before = {name: ledger.folder.read(name) for name in ledger.folder.list()}
    again = Ledger.open(Folder(output))
    assert again.summary() == first
    assert finalise(again) == first
    assert {name: ledger.folder.read(name) for name in ledger.folder.list()} == before


def test_a_kill_at_any_write_of_the_end_loses_nothing(
    output: str, manifest: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every write and delete of the end is the last one of some run."""
    ledger = start(output, manifest)
    make_all(ledger)
    rival = prepare(ledger, 1)
    for kills in range(60):
        with monkeypatch.context() as patch:
            killing(patch, ("put", "upload", "delete"), kills)
            try:
                finalise(Ledger.open(Folder(output)))
                break
            except Killed:
                pass
        assert [finding for finding in verify(output).findings if finding.code != "stray"] == []
        # Between two runs a try that was given up for dead commits after all.
        if all(ledger.folder.exists(file.name) for file in rival[1].files()):
            Ledger.open(Folder(output)).commit(*rival)
    else:
        pytest.fail("the end never came")
    assert kills > 3
    assert verify(output).findings == []


@pytest.mark.parametrize("conditional", [True, False])
def test_a_kill_at_any_operation_of_the_end_gives_the_same_tables(
    manifest: str, monkeypatch: pytest.MonkeyPatch, conditional: bool
) -> None:
    """Reads and listings too: whatever was read before the kill is read again."""
    ledger = start_in_memory(manifest, conditional=conditional)
    make_all(ledger)
    if not conditional:
        make(ledger, 1)
    whole: dict[str, bytes] = {}
    for kills in range(200):
        with monkeypatch.context() as patch:
            killing(patch, ("read", "list", "open", "put", "upload", "delete"), kills)
            try:
                finalise(Ledger.open(ledger.folder))
            except Killed:
                continue
        break
    else:
        pytest.fail("the end never came")
    assert kills > 20
    whole = {name: ledger.folder.read(name) for name in ledger.folder.list() if name != "ledger/finished.json"}
    assert not [name for name in whole if name.startswith("ledger/finish/")]
    once = start_in_memory(manifest, conditional=conditional, like=ledger)
    finalise(once)
    for name in ("index.parquet", "failures.parquet"):
        assert once.folder.read(name) == whole[name]


def test_ids_in_two_shards_are_listed_with_their_later_places(output: str, tmp_path: Path) -> None:
    ids = [f"u{n}" for n in range(14)]
    ids[6], ids[10], ids[12] = "u0", "u0", "u3"
    manifest = write_manifest(tmp_path / "in" / "doubled.parquet", id=ids)
    ledger = start(output, manifest)
    make_all(ledger)
    summary = finalise(ledger)
    duplicates = table_in(ledger.folder, "duplicates.parquet")
    assert duplicates["id"].to_pylist() == ["u0", "u0", "u3"]
    assert summary.duplicates == 3
    assert summary.exit_code == 3
    index = {(row["shard"], row["row"]): row for row in table_in(ledger.folder, "index.parquet").to_pylist()}
    for row in duplicates.to_pylist():
        assert index[row["shard"], row["row"]]["id"] == row["id"]
        assert index[row["shard"], row["row"]]["voice_id"] == row["voice_id"]
    assert verify(output).findings == []


def test_a_job_of_good_rows_has_an_empty_failures_table(tmp_path: Path) -> None:
    manifest = write_manifest(tmp_path / "m.parquet")
    rows = pq.read_table(manifest)
    pq.write_table(rows.slice(0, 5), manifest)
    output = str(tmp_path / "out")
    ledger = start(output, manifest)
    make_all(ledger)
    assert finalise(ledger).exit_code == 0
    failures = table_in(ledger.folder, "failures.parquet")
    assert failures.num_rows == 0
    assert failures.column_names[:6] == ["id", "voice_id", "error", "message", "manifest", "row"]


def test_a_job_of_bad_rows_has_an_empty_index(tmp_path: Path) -> None:
    manifest = write_manifest(tmp_path / "m.parquet")
    pq.write_table(pq.read_table(manifest).slice(5, 1), manifest)
    output = str(tmp_path / "out")
    ledger = start(output, manifest)
    make_all(ledger)
    assert finalise(ledger).exit_code == 3
    assert table_in(ledger.folder, "index.parquet").num_rows == 0
    assert ledger.folder.list("audio/") == []
    assert verify(output).findings == []


def test_the_index_is_written_in_parts_of_any_number(
    tmp_path: Path, manifest: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jobs.ledger.parts.ROW_GROUP_ROWS", 5)
    monkeypatch.setattr("jobs.ledger.parts.READ_AHEAD", 1)
    ledger = start(str(tmp_path / "out"), manifest)
    make_all(ledger)
    finalise(ledger)
    assert table_in(ledger.folder, "index.parquet").num_rows == 12
    assert verify(str(tmp_path / "out")).findings == []


def test_a_part_that_was_damaged_stops_the_end(tmp_path: Path, manifest: str) -> None:
    ledger = start(str(tmp_path / "out"), manifest)
    make_all(ledger)
    record = next(ledger.records())
    assert record.index is not None
    ledger.folder.put(record.index.name, b"x")
    with pytest.raises(StorageError, match="is damaged: it is not what was committed"):
        finalise(ledger)
    ledger.folder.delete(record.index.name)
    with pytest.raises(StorageError, match="is missing; a commit record names it"):
        finalise(ledger)
    assert ledger.summary() is None


def test_who_lost_the_lease_does_not_finish(place: str, manifest: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger, other = start(place, manifest), Ledger.open(Folder(place))
    make_all(ledger)
    with ledger.lease() as lease:
        late = Timing(stale=-1e9, beat=1e6)  # takes any lease for lapsed
        with other.lease(timing=late), pytest.raises(LeaseHeld, match="lost the output"):
            finalise(ledger)
        assert lease.lost is not None
    assert not ledger.folder.exists("index.parquet")
    with other.lease(timing=late):
        finalise(other)
    assert verify(place).findings == []


def test_a_lease_lost_while_the_tables_are_made_stops_before_they_are_published(
    place: str, manifest: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger, other = start(place, manifest), Ledger.open(Folder(place))
    make_all(ledger)
    plain, late = Finisher.run, Timing(stale=-1e9, beat=1e6)

    def taken_over(self: Finisher, task: Task) -> Any:
        with other.lease(timing=late):
            return plain(self, task)

    monkeypatch.setattr(Finisher, "run", taken_over)
    with ledger.lease(), pytest.raises(JobError, match="lost the output"):
        finalise(ledger)
    assert not ledger.folder.exists("index.parquet")
