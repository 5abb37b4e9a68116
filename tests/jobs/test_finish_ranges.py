"""The end of a job of more than one range of shards, done by workers."""

from __future__ import annotations

import hashlib
import io
import random
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from benchmarks.simulation import MemoryStore
from jobs import duplicates
from jobs.duplicates import ENTRY
from jobs.errors import StorageError, Unfinished
from jobs.finish import Finisher, Gather, finalise
from jobs.ledger.ledger import Ledger
from jobs.ledger.records import Attempt, CommitRecord, StoredFile, ids_digest
from jobs.ledger.tables import INDEX_SCHEMA, failures_schema
from jobs.making import on_ray
from jobs.manifest.manifest import Manifest
from jobs.measures.opinion import OPINIONS
from jobs.plan import make_plan
from jobs.stop import Stop
from jobs.storage.folders import Folder
from jobs.verify.verify import verify
from tests.jobs.made_job import job_of, table_in
from tests.jobs.ray_session import local_ray

__all__ = ["local_ray"]

SHARDS = 1_030  # two ranges, of a row each
FAILED = range(7, SHARDS, 100)
DOUBLED = {900: 800, 1_001: 3, 1_020: 3, 1_029: 0}  # row: the earlier row whose id it has


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Ledger:
    """A job whose shards are all committed, with what tries that do not count left behind."""
    ids = [f"u{DOUBLED.get(row, row)}" for row in range(SHARDS)]
    columns = {"id": ids, "voice_id": ["v"] * SHARDS, "tokens": pa.array([[1]] * SHARDS, pa.list_(pa.int32()))}
    path = tmp_path_factory.mktemp("in") / "manifest.parquet"
    pq.write_table(pa.table(columns), path)
    plan = make_plan(Manifest.scan(str(path)), 1)
    ledger = Ledger.start(Folder.of(MemoryStore(), "made-up://many"), job_of("/made/up", str(path)), plan)
    for shard in random.Random(0).sample(range(SHARDS), SHARDS):
        ledger.commit(*small(ledger, shard, ids[shard]))
    for shard in (0, 999, 1_000, 1_029):
        attempt = ledger.attempt(shard)
        for name in (attempt.audio_name("parquet"), attempt.index_name, attempt.failures_name):
            ledger.folder.put(name, b"of a try that died")
    return ledger


def small(ledger: Ledger, shard: int, row_id: str) -> tuple[Attempt, CommitRecord]:
    """A try at a shard of one row; its audio is only named."""
    attempt = ledger.attempt(shard)
    made = shard not in FAILED
    schema = INDEX_SCHEMA if made else failures_schema(ledger.plan.manifest.columns)
    values = {"id": row_id, "voice_id": "v", "shard": attempt.audio_name("parquet"), "row": 0 if made else shard}
    values |= {"error": "null_id", "manifest": ledger.plan.manifest.files[0].url}
    values |= {"tokens": [1], "samples": 960, "cuts": [], **dict.fromkeys(OPINIONS)}
    row = {field.name: values.get(field.name, "" if pa.types.is_string(field.type) else 0) for field in schema}
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist([row], schema=schema), buffer)
    name, data = attempt.index_name if made else attempt.failures_name, buffer.getvalue()
    ledger.folder.put(name, data)
    file = StoredFile(name=name, bytes=len(data), sha256=hashlib.sha256(data).hexdigest())
    return attempt, CommitRecord(
        shard=shard,
        attempt=attempt.id,
        plan=ledger.plan.digest,
        ids=ids_digest(pa.array([row_id])),
        rows=1,
        rows_done=int(made),
        rows_failed=int(not made),
        samples=960 * made,
        errors={} if made else {"null_id": 1},
        problems={},
        positions=0,
        padding=0,
        worker="there:7",
        tries=1,
        started_at=1e9 + shard,
        finished_at=1e9 + shard + 10,
        audio=None,
        index=file if made else None,
        failures=None if made else file,
    )


def on_disk(many: Ledger, place: Path) -> Ledger:
    """A copy of it in a local folder."""
    for name in many.folder.list():
        path = place / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(many.folder.read(name))
    return Ledger.open(Folder(str(place)))


def tables_of(folder: Folder) -> dict[str, bytes]:
    return {name: folder.read(name) for name in folder.list() if not name.startswith("ledger/") and "/" not in name}


def test_a_job_of_several_ranges_has_the_tables_that_one_pass_over_its_parts_gives(
    many: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(duplicates, "PARTITION_ROWS", 150)  # seven partitions
    ledger = on_disk(many, tmp_path / "out")
    records = list(ledger.records())
    summary = finalise(ledger)
    index, failures, doubled = (table_in(ledger.folder, f"{n}.parquet") for n in ("index", "failures", "duplicates"))
    assert index.equals(pa.concat_tables([table_in(ledger.folder, r.index.name) for r in records if r.index]))
    assert failures.equals(pa.concat_tables([table_in(ledger.folder, r.failures.name) for r in records if r.failures]))
    seen: set[str] = set()
    later = [row["id"] in seen or seen.add(row["id"]) is not None for row in index.to_pylist()]
    assert doubled.equals(index.filter(pa.array(later)).select(doubled.column_names))
    assert doubled["id"].to_pylist() == ["u800", "u3", "u3", "u0"]
    assert (summary.rows_done, summary.rows_failed, summary.duplicates) == (SHARDS - 11, 11, 4)
    assert summary.speed == pytest.approx(0.04 * summary.rows_done / (SHARDS + 9))
    named = {file.name for record in records for file in record.files()}
    assert set(ledger.folder.list("ledger/index/")) | set(ledger.folder.list("ledger/failures/")) == named
    assert ledger.folder.list("audio/") == []
    assert ledger.folder.list("ledger/finish/") == []


def test_workers_make_the_same_end_as_this_process(many: Ledger, tmp_path: Path, local_ray: None) -> None:
    here, there = on_disk(many, tmp_path / "here"), on_disk(many, tmp_path / "there")
    config: Any = SimpleNamespace(storage_options={}, stall_seconds=60.0)
    with there.lease() as lease:
        made = finalise(there, on_ray(config, there, lease, Stop()))
    assert replace(made, finished_at=0) == replace(finalise(here), finished_at=0)
    assert tables_of(there.folder) == tables_of(here.folder)
    assert {name for name in there.folder.list() if "/lease/" not in name} == set(here.folder.list())


def test_an_end_that_workers_cannot_make_says_why(many: Ledger, tmp_path: Path, local_ray: None) -> None:
    ledger = on_disk(many, tmp_path / "out")
    (name,) = ledger.folder.list("ledger/index/0000123")
    (tmp_path / "out" / name).write_bytes(b"x")
    config: Any = SimpleNamespace(storage_options={}, stall_seconds=60.0)
    with ledger.lease() as lease, pytest.raises(Unfinished, match="not what was committed\ngo on with: s3gen resume"):
        finalise(ledger, on_ray(config, ledger, lease, Stop()))
    assert ledger.summary() is None


def test_a_large_index_is_a_folder_that_reads_as_one(
    many: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = on_disk(many, tmp_path / "out")
    with monkeypatch.context() as patch:
        patch.setattr("jobs.finish.SINGLE_FILE_ROWS", SHARDS - 1)
        finalise(ledger)
    once = on_disk(many, tmp_path / "once")
    finalise(once)
    parts = tmp_path / "out" / "index.parquet"
    assert sorted(path.name for path in parts.iterdir()) == [f"part-000{n}.parquet" for n in range(2)]
    assert pq.read_table(parts).equals(table_in(once.folder, "index.parquet"))
    assert pd.read_parquet(parts).equals(pd.read_parquet(tmp_path / "once" / "index.parquet"))
    assert {finding.code for finding in verify(str(tmp_path / "out")).findings} == set()


def test_a_task_that_runs_again_when_all_is_over_changes_nothing(many: Ledger, tmp_path: Path) -> None:
    """A worker that was given up for dead wakes up."""
    ledger = on_disk(many, tmp_path / "out")
    finisher = Finisher(ledger)
    first = finisher.run(Gather(1))
    finalise(ledger)
    before = {name: ledger.folder.read(name) for name in ledger.folder.list()}
    assert str(finisher.run(Gather(1))) == str(first)
    after = {name: ledger.folder.read(name) for name in ledger.folder.list() if "ledger/finish/" not in name}
    assert after == before
    finalise(ledger)
    assert {name: ledger.folder.read(name) for name in ledger.folder.list()} == before


def test_a_record_that_vanished_stops_the_end(many: Ledger, tmp_path: Path) -> None:
    ledger = on_disk(many, tmp_path / "out")
    ledger.folder.delete(ledger.record_names(1)[1_023])
    with pytest.raises(Unfinished, match="1 of 1030 shards are not done"):
        finalise(ledger)
    with pytest.raises(StorageError, match="the commit record of shard 1023 is gone"):
        Finisher(ledger).run(Gather(1))
    assert ledger.folder.list(f"ledger/index/{1_023:07d}") != []  # nothing was cleared away


def test_every_partition_gets_its_share_of_ids() -> None:
    ids = pa.chunked_array([[f"utterance-{n}" for n in range(5_000)]])
    found = duplicates.entries(ids, 100)
    assert found["row"].tolist() == list(range(100, 5_100))
    counts = np.bincount(duplicates.partition_of(found, 7), minlength=7)
    assert len(counts) == 7
    assert counts.min() > 600
    assert len(np.unique(found[["high", "low"]])) == 5_000


@pytest.mark.parametrize("seed", range(5))
def test_repeated_ids_are_those_that_a_set_finds(seed: int) -> None:
    random_ids = random.Random(seed)
    ranges = [[f"u{random_ids.randrange(40)}" for _ in range(random_ids.randrange(20))] for _ in range(4)]
    found = [duplicates.entries(pa.chunked_array([pa.array(ids, pa.string())]), 0) for ids in ranges]
    places = duplicates.repeated(found, range(4))
    seen: set[str] = set()
    wanted = []
    for number, ids in enumerate(ranges):
        for row, row_id in enumerate(ids):
            if row_id in seen:
                wanted.append((number, row))
            seen.add(row_id)
    assert [tuple(place) for place in places.tolist()] == wanted
    assert len(duplicates.repeated([], [])) == 0
    assert found[0].dtype == ENTRY
