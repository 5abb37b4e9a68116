"""A job that makes tokens: its table lies elsewhere, and nothing takes it for a job of audio."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.errors import InputError
from jobs.finish import finalise
from jobs.ledger.ledger import Ledger
from jobs.ledger.records import CommitRecord, StoredFile, counts, ids_digest
from jobs.ledger.tables import failures_schema, failures_table, packed
from jobs.manifest.manifest import Manifest
from jobs.manifest.rows import Failure
from jobs.plan import Plan, make_plan
from jobs.status import status
from jobs.storage.folders import Folder
from jobs.verify.verify import verify
from s3gen.constants import SAMPLE_RATE
from tests.jobs.made_job import bare_record

ROWS, SHARD_ROWS = 10, 4
INPUT = pa.schema([("id", pa.string()), ("voice_id", pa.string()), ("path", pa.string())])
TABLE = pa.schema(
    [("id", pa.string()), ("voice_id", pa.string()), ("tokens", pa.list_(pa.int32())), ("audio_seconds", pa.float64())]
)
LOST = 5


def job_of(table: str) -> dict[str, Any]:
    schemas = {"table": packed(TABLE), "failures": packed(failures_schema(INPUT))}
    job = {"kind": "tokenize", "table": table, "schemas": schemas, "config": {"workers": 1}}
    return {**job, "fingerprints": {"model": "f"}, "versions": {}, "limit": None}


def plan_of(path: Path, ids: Sequence[str]) -> Plan:
    rows = {"id": list(ids), "voice_id": ["v"] * len(ids), "path": [f"{n}.wav" for n in range(len(ids))]}
    pq.write_table(pa.table(rows, schema=INPUT), path)
    return make_plan(Manifest.of([str(path)], check=lambda url, columns: None), SHARD_ROWS)


def stored(ledger: Ledger, name: str, table: pa.Table) -> StoredFile:
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    data = buffer.getvalue()
    ledger.folder.put(name, data)
    return StoredFile(name=name, bytes=len(data), sha256=hashlib.sha256(data).hexdigest())


def make(ledger: Ledger, shard: int, tokens: list[int | None] | None = None) -> None:
    """One shard, in which row number ``LOST`` of the job fails."""
    planned = ledger.plan.shard(shard)
    table = ledger.plan.manifest.read(planned.spans)
    urls, rows = ledger.plan.origins(planned)
    made = [at for at in range(planned.rows) if rows[at] != LOST]
    failed = [Failure(at, None, None, "unreadable", "no audio") for at in range(planned.rows) if at not in made]
    columns = {name: table[name].take(made) for name in ("id", "voice_id")}
    columns |= {"tokens": [tokens or [0, 6_560]] * len(made), "audio_seconds": [0.1 + at for at in made]}
    attempt = ledger.attempt(shard)
    record = CommitRecord(
        **{name: getattr(bare_record(), name) for name in ("positions", "padding", "worker", "tries")},
        **{name: getattr(bare_record(), name) for name in ("started_at", "finished_at", "problems")},
        shard=shard,
        attempt=attempt.id,
        plan=ledger.plan.digest,
        ids=ids_digest(table["id"]),
        rows=planned.rows,
        rows_done=len(made),
        rows_failed=len(failed),
        samples=sum(round((0.1 + at) * SAMPLE_RATE) for at in made),
        errors=counts(failure.error for failure in failed),
        audio=None,
        index=stored(ledger, attempt.index_name, pa.table(columns, schema=TABLE)),
        failures=stored(ledger, attempt.failures_name, failures_table(failed, table, (urls, rows))) if failed else None,
    )
    assert ledger.commit(attempt, record)


def finished(place: str, name: str, source: Path, ids: Sequence[str] = [f"u{n}" for n in range(ROWS)]) -> Ledger:
    table = f"{place}/{name}"
    ledger = Ledger.start(Folder(f"{table}.job"), job_of(table), plan_of(source, ids))
    for shard in range(len(ledger.plan)):
        make(ledger, shard)
    finalise(ledger)
    return ledger


def test_tokens_lie_where_nobody_asked_for_them(place: str, tmp_path: Path) -> None:
    ledger = finished(place, "tokens.parquet", tmp_path / "list.parquet")
    assert Folder(place).list("tokens.parquet") == ["tokens.parquet", *Folder(place).list("tokens.parquet.job/")]
    table = pq.read_table(io.BytesIO(Folder(place).read("tokens.parquet")))
    assert table.schema.equals(TABLE)
    assert table["id"].to_pylist() == [f"u{n}" for n in range(ROWS) if n != LOST]
    failures = pq.read_table(io.BytesIO(ledger.folder.read("failures.parquet")))
    assert failures.select(["id", "error", "row", "path"]).to_pylist() == [
        {"id": "u5", "error": "unreadable", "row": 5, "path": "5.wav"}
    ]
    assert [name for name in ledger.folder.list() if "/" not in name] == ["failures.parquet", "job.json"]
    summary = Ledger.open(ledger.folder).summary()
    assert summary is not None
    assert (summary.rows_done, summary.errors, summary.exit_code) == (ROWS - 1, {"unreadable": 1}, 3)
    found = verify(ledger.folder.url)
    assert (found.findings, found.rows_checked, found.notes) == ([], ROWS - 1, [])
    assert status(ledger.folder.url).state == "finished"


@pytest.mark.parametrize(("name", "most"), [("tokens", 100), ("tokens.parquet", 5)])
def test_a_table_in_parts_holds_more_than_its_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, most: int
) -> None:
    """One that was asked for as a folder, and a large one."""
    monkeypatch.setattr("jobs.finish.SINGLE_FILE_ROWS", most)
    ledger = finished(str(tmp_path), name, tmp_path / "list.parquet")
    assert sorted(path.name for path in (tmp_path / name).iterdir()) == ["part-0000.parquet"]
    assert pq.read_table(tmp_path / name)["id"].to_pylist() == [f"u{n}" for n in range(ROWS) if n != LOST]
    assert verify(ledger.folder.url).findings == []


def test_doubled_ids_of_recordings_go_unsaid(tmp_path: Path) -> None:
    ids = [f"u{n % 7}" for n in range(ROWS)]
    ledger = finished(str(tmp_path), "tokens.parquet", tmp_path / "list.parquet", ids)
    doubled = pq.read_table(tmp_path / "tokens.parquet.job" / "duplicates.parquet")
    assert doubled.to_pylist() == [{"id": f"u{n}", "voice_id": "v"} for n in range(3)]
    assert verify(ledger.folder.url).findings == []


def test_a_table_that_is_there_is_replaced(tmp_path: Path) -> None:
    plan = plan_of(tmp_path / "list.parquet", ["a"])
    for name, taken in (("tokens.parquet", "tokens.parquet"), ("tokens", "tokens/part-0000.parquet")):
        path = tmp_path / taken
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"mine")
        with pytest.raises(InputError, match=f"{tmp_path / name} is there already"):
            Ledger.start(Folder(f"{tmp_path / name}.job"), job_of(str(tmp_path / name)), plan)
        assert path.read_bytes() == b"mine"
        assert not (tmp_path / f"{name}.job").exists()


def test_a_job_of_one_kind_goes_on_as_one_of_another(tmp_path: Path) -> None:
    plan = plan_of(tmp_path / "list.parquet", ["a"])
    job = job_of(str(tmp_path / "tokens"))
    ledger = Ledger.start(Folder(str(tmp_path / "out")), job, plan)
    ledger.check_unchanged(job, plan)
    with pytest.raises(InputError, match='kind: was "tokenize", is "synth"'):
        ledger.check_unchanged({**job, "kind": "synth"}, plan)
    with pytest.raises(InputError, match="table: was"):
        ledger.check_unchanged({**job, "table": str(tmp_path / "other")}, plan)


@pytest.mark.parametrize("tokens", [[6_561], [-1], [None], [], None], ids=str)
def test_what_is_no_token_is_called_one(tmp_path: Path, tokens: list[int | None] | None) -> None:
    table = str(tmp_path / "tokens.parquet")
    ledger = Ledger.start(Folder(f"{table}.job"), job_of(table), plan_of(tmp_path / "list.parquet", ["a", "b"]))
    make(ledger, 0)
    assert verify(ledger.folder.url).findings == []
    (record,) = ledger.records()
    assert record.index is not None
    part = pq.read_table(io.BytesIO(ledger.folder.read(record.index.name)))
    wrong = part.set_column(2, "tokens", pa.array([[1], tokens], pa.list_(pa.int32())))
    changed = replace(record, index=stored(ledger, record.index.name, wrong))
    ledger.folder.put(ledger.record_names(0)[0], changed.to_bytes())
    (finding,) = verify(ledger.folder.url).findings
    assert finding.code == "tokens"
    assert finding.message.startswith("'b' has ")
