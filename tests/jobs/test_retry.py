"""Failed rows that are tried again: none is lost, made twice or forgotten, whoever dies when."""

from __future__ import annotations

import contextlib
import shutil
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from jobs import making
from jobs.crew.isolation import MAX_GUILTY
from jobs.crew.placement import Share
from jobs.errors import InputError, LeaseHeld, StorageError
from jobs.finish import Finisher, Gather, Gathered, Join, finalise
from jobs.ledger.layout import ROUNDS
from jobs.ledger.lease import Timing
from jobs.ledger.ledger import Ledger
from jobs.ledger.tally import Summary
from jobs.manifest.manifest import Manifest
from jobs.manifest.rows import Row
from jobs.manifest.seeds import derived_seed
from jobs.plan import make_plan
from jobs.retry import MENDABLE, begin_retry
from jobs.status import status
from jobs.stop import Stop
from jobs.storage.folders import Folder
from jobs.verify.verify import verify
from tests.jobs import made_job
from tests.jobs.conftest import place_in
from tests.jobs.killing import Killed, killing
from tests.jobs.made_job import job_of, plan_of, start, table_in, write_manifest
from tests.jobs.object_stores import ignore_conditions

ROWS, UNMENDABLE = 14, ["u5", "u9"]  # of write_manifest
Trouble = Callable[[Row], str | None]


@pytest.fixture(params=["conditional", "blind"])
def output(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """An output in each kind of store, with put-if-absent and without."""
    if request.param == "blind":
        ignore_conditions(monkeypatch)
    return place_in("memory", request)


def failing(**codes: str) -> Trouble:
    return lambda row: codes.get(row.id)


def make_left(ledger: Ledger, trouble: Trouble = lambda row: None) -> Summary:
    """What is not committed, and the end."""
    done = ledger.committed()
    for shard in range(len(ledger.plan)):
        if shard not in done:
            assert ledger.commit(*made_job.prepare(ledger, shard, trouble=trouble))
    return finalise(ledger)


def again(ledger: Ledger) -> Ledger:
    """With another round; what it returns is what anybody finds there."""
    begun = begin_retry(ledger)
    assert begun is not None
    found = Ledger.open(ledger.folder)
    assert found.plan.digest == begun.plan.digest
    return found


def table(ledger: Ledger, name: str) -> Any:
    return table_in(ledger.folder, name)


def failures(ledger: Ledger) -> dict[str, str]:
    return dict(zip(*(table(ledger, "failures.parquet")[name].to_pylist() for name in ("id", "error")), strict=True))


def ids(ledger: Ledger) -> list[str]:
    found: list[str] = table(ledger, "index.parquet")["id"].to_pylist()
    return found


def each_row_is_there_once(ledger: Ledger) -> None:
    assert Counter([*ids(ledger), *failures(ledger)]) == Counter(dict.fromkeys(every_id(ledger), 1))
    assert verify(ledger.folder.url).findings == []


def every_id(ledger: Ledger) -> list[str]:
    found: list[str] = pq.read_table(ledger.job["config"]["manifest"])["id"].to_pylist()
    return found[: ledger.job["limit"]]


# --- what a round does ------------------------------------------------------------------------------------------------


def test_rows_that_are_mended_stay_in_the_failures_or_move_what_was_there(place: str, manifest: str) -> None:
    ledger = start(place, manifest)
    first = make_left(ledger, failing(u3="bad_audio", u7="worker_crashed", u13="synthesis_error"))
    assert (first.rows_done, first.rows_failed, first.exit_code) == (9, 5, 3)
    records = {record.shard: record for record in ledger.records()}
    before = table(ledger, "index.parquet")

    ledger = again(ledger)
    assert ledger.summary() is None
    assert ledger.committed() == set(records)
    assert ids(ledger) == before["id"].to_pylist()  # readable all the while
    summary = make_left(ledger)
    assert (summary.rows_total, summary.rows_done, summary.rows_failed, summary.exit_code) == (ROWS, 12, 2, 3)
    assert summary.errors == {"null_tokens": 1, "token_out_of_range": 1}
    assert list(failures(ledger)) == UNMENDABLE
    after = table(ledger, "index.parquet")
    assert after.slice(0, before.num_rows).equals(before)
    assert after["id"].to_pylist()[before.num_rows :] == ["u3", "u13", "u7"]
    assert {record.shard: record for record in ledger.records()}.items() >= records.items()
    each_row_is_there_once(ledger)
    assert begin_retry(Ledger.open(ledger.folder)) is None


def test_a_row_that_fails_again_loses_its_place_in_the_manifest(output: str, manifest: str) -> None:
    ledger = start(output, manifest)
    trouble = failing(u3="bad_audio", u7="worker_crashed", u12="out_of_memory")
    make_left(ledger, trouble)
    kept = {row["id"]: row for row in table(ledger, "failures.parquet").to_pylist()}
    for number in (1, 2):
        ledger = again(ledger)
        summary = make_left(ledger, trouble)
        assert (summary.rows_total, summary.rows_failed) == (ROWS, 5)
        assert {row["id"]: row for row in table(ledger, "failures.parquet").to_pylist()} == kept
        assert len(ledger.rounds) == number
        each_row_is_there_once(ledger)
    assert kept["u12"]["row"] == 12
    assert kept["u12"]["manifest"] == manifest
    ledger = again(ledger)
    assert make_left(ledger, failing(u3="not_finite")).errors == {
        "not_finite": 1,
        "null_tokens": 1,
        "token_out_of_range": 1,
    }
    each_row_is_there_once(ledger)


def seeds_of(ledger: Ledger) -> dict[str, int]:
    """The seeds of all rows that a round's shards have."""
    found: dict[str, int] = {}

    def note(row: Row) -> None:
        found[row.id] = row.seed

    for shard in range(ledger.rounds[-1].shard, len(ledger.plan)):
        made_job.prepare(ledger, shard, trouble=note)
    return found


def test_the_same_seed_is_tried_again_where_it_made_bad_audio(tmp_path: Path, manifest: str) -> None:
    ledger = start(str(tmp_path / "out"), manifest)
    make_left(ledger, failing(u3="bad_audio", u4="not_finite", u7="worker_crashed"))
    ledger = again(ledger)
    own = {row_id: derived_seed(3, row_id) for row_id in ("u3", "u4", "u7")}
    first = {"u3": derived_seed(3, "u3", 1), "u4": derived_seed(3, "u4", 1), "u7": own["u7"]}
    assert seeds_of(ledger) == first
    assert first["u3"] != own["u3"]
    make_left(ledger, failing(u3="worker_hung", u4="bad_audio", u7="bad_audio"))
    ledger = again(ledger)
    # The one that crashed keeps what it has got; the others get yet another one.
    assert seeds_of(ledger) == {"u3": first["u3"], "u4": derived_seed(3, "u4", 2), "u7": derived_seed(3, "u7", 2)}


@pytest.mark.parametrize(
    "kind",
    [pa.int64(), pa.uint64(), pa.int8(), pa.float64(), pa.float16(), None],
    ids=str,
)
def test_a_seed_that_was_used_is_not_the_one_that_is_kept(tmp_path: Path, kind: pa.DataType | None) -> None:
    columns = {"seed": pa.array(np.arange(ROWS, dtype=np.int8)).cast(pa.float32()).cast(kind)} if kind else {}
    manifest = write_manifest(tmp_path / "manifest.parquet", **columns)
    ledger = start(str(tmp_path / "out"), manifest, keep_inputs=True)
    make_left(ledger, failing(u3="bad_audio", u7="worker_crashed"))
    ledger = again(ledger)
    used = seeds_of(ledger)
    make_left(ledger)
    shards = [table(ledger, record.audio.name) for record in ledger.records() if record.audio]
    assert len({shard.schema.remove_metadata() for shard in shards}) == 1
    rows = {row["id"]: row["seed"] for shard in shards for row in shard.to_pylist()}
    assert {row_id: rows[row_id] for row_id in used} == used
    if kind:
        assert (rows["u7"], rows["u4"]) == (7, 4)
        assert used["u3"] >= 0
        assert used["u3"] not in (3, derived_seed(3, "u3"))
    each_row_is_there_once(ledger)


def test_columns_with_the_names_of_a_failures_table_are_mixed_up(tmp_path: Path) -> None:
    own = {
        "message": [f"message {n}" for n in range(ROWS)],
        "error": pa.array([f"error {n}" for n in range(ROWS)]).dictionary_encode(),
        "extra": [{"a": n, "b": [str(n)]} for n in range(ROWS)],
    }
    manifest = write_manifest(tmp_path / "manifest.parquet", **own)
    ledger = start(str(tmp_path / "out"), manifest)
    make_left(ledger, failing(u3="bad_audio", u7="worker_crashed"))
    ledger = again(ledger)
    make_left(ledger, failing(u7="worker_crashed"))
    each_row_is_there_once(ledger)
    *_, last = [record for record in ledger.records() if record.audio]
    assert last.audio is not None
    (row,) = table(ledger, last.audio.name).to_pylist()
    assert (row["id"], row["message"], row["error"], row["extra"]) == (
        "u3",
        "message 3",
        "error 3",
        {"a": 3, "b": ["3"]},
    )
    kept = {row["id"]: row for row in table(ledger, "failures.parquet").to_pylist()}["u7"]
    assert (kept["error"], kept["own_error"], kept["own_message"]) == ("worker_crashed", "error 7", "message 7")


def test_a_trial_gets_rows_that_it_is_not_about(tmp_path: Path, manifest: str) -> None:
    folder = Folder(str(tmp_path / "out"))
    job = job_of(folder.url, manifest) | {"limit": 7}
    ledger = Ledger.start(folder, job, plan_of(manifest, 7))
    make_left(ledger, failing(u3="bad_audio", u4="worker_crashed"))
    ledger = again(ledger)
    summary = make_left(ledger)
    assert (summary.rows_total, summary.rows_done, summary.rows_failed) == (7, 6, 1)
    each_row_is_there_once(ledger)


def test_a_job_of_several_files_gets_rows_of_another_one(tmp_path: Path) -> None:
    whole = pq.read_table(write_manifest(tmp_path / "whole.parquet"))
    (tmp_path / "in").mkdir()
    for number, start_row in enumerate((0, 3, 6)):
        pq.write_table(whole.slice(start_row, 3 if number < 2 else 20), tmp_path / "in" / f"{number}.parquet")
    url = str(tmp_path / "in")
    ledger = Ledger.start(Folder(str(tmp_path / "out")), job_of(str(tmp_path / "out"), url), plan_of(url))
    make_left(ledger, failing(u3="synthesis_error", u8="bad_audio"))
    ledger = again(ledger)
    make_left(ledger, failing(u3="synthesis_error"))
    kept = {row["id"]: row for row in table(ledger, "failures.parquet").to_pylist()}["u3"]
    assert (kept["manifest"], kept["row"]) == (f"{url}/1.parquet", 0)
    each_row_is_there_once(ledger)


def test_many_deadly_rows_meet_in_one_shard_which_is_given_up(tmp_path: Path) -> None:
    count = 40
    columns: dict[str, Any] = {"id": [f"u{n}" for n in range(count)], "voice_id": ["v"] * count}
    columns["tokens"] = pa.array([[1, 2]] * count, pa.list_(pa.int32()))
    path = tmp_path / "manifest.parquet"
    pq.write_table(pa.table(columns), path)
    plan = make_plan(Manifest.scan(str(path)), 20)
    folder = Folder(str(tmp_path / "out"))
    ledger = Ledger.start(folder, job_of(folder.url, str(path), shard_rows=20), plan)
    codes = ["worker_crashed", "bad_audio", "worker_hung", "synthesis_error"]
    trouble: Trouble = lambda row: codes[int(row.id[1:]) % 4]  # noqa: E731
    assert make_left(ledger, trouble).rows_done == 0
    ledger = again(ledger)
    shards = [ledger.plan.shard(shard) for shard in range(2, len(ledger.plan))]
    assert [shard.rows for shard in shards] == [20] + 5 * [MAX_GUILTY]
    deadly = [ledger.plan.origins(shard)[1].tolist() for shard in shards[1:]]
    assert sorted(row for rows in deadly for row in rows) == list(range(0, count, 2))
    assert make_left(ledger).exit_code == 0
    each_row_is_there_once(ledger)


def test_two_rows_of_one_id_meet_in_one_shard_where_one_fails_for_ever(output: str, tmp_path: Path) -> None:
    """Each was in a shard of its own, where both may be made."""
    names = ["x", "a", "b", "c", "x", "d", "e", "f", "y", "g", "x", "h", "y", "i"]
    manifest = write_manifest(tmp_path / "manifest.parquet")
    pq.write_table(pq.read_table(manifest).set_column(0, "id", pa.array(names)), manifest, row_group_size=5)
    ledger = start(output, manifest)
    trouble = failing(x="bad_audio", c="bad_audio", y="worker_crashed")
    assert make_left(ledger, trouble).errors["bad_audio"] == 4
    for _ in range(2):
        ledger = again(ledger)
        errors = make_left(ledger, trouble).errors
        assert (errors["bad_audio"], errors["worker_crashed"]) == (4, 2)
        assert "duplicate_id" not in errors
    ledger = again(ledger)
    summary = make_left(ledger)
    assert set(summary.errors) == {"null_tokens", "token_out_of_range"}
    assert summary.duplicates == 3
    assert Counter(ids(ledger)) == Counter(name for at, name in enumerate(names) if at not in (5, 9))
    assert verify(ledger.folder.url).findings == []


def test_only_what_may_be_mended_is_tried(tmp_path: Path) -> None:
    """Whatever follows from the row itself would fail again; and what is tried is what the user is told of."""
    manifest = write_manifest(tmp_path / "manifest.parquet", count=60)
    ledger = start(str(tmp_path / "out"), manifest)
    codes = sorted(MENDABLE | {"unknown_voice", "too_long", "duplicate_id", "empty_tokens"})
    summary = make_left(ledger, lambda row: codes[int(row.id[1:]) % len(codes)] if row.id[1:].isdigit() else None)
    ledger = again(ledger)
    taken = ledger.rounds[0].taken
    assert set(taken) == MENDABLE
    assert taken == {code: summary.errors[code] for code in sorted(MENDABLE)}
    assert ledger.rows_in_round == sum(taken.values())


# --- what may go wrong ------------------------------------------------------------------------------------------------


def test_a_failures_table_that_was_edited_becomes_input(tmp_path: Path, manifest: str) -> None:
    ledger = start(str(tmp_path / "out"), manifest)
    make_left(ledger, failing(u3="bad_audio"))
    whole = ledger.folder.read("failures.parquet")
    path = tmp_path / "out" / "failures.parquet"
    edited = pq.read_table(path)
    pq.write_table(edited.set_column(0, "id", pa.array(["x"] * edited.num_rows)), path)
    with pytest.raises(StorageError, match=r"failures.parquet is not the table that the job wrote.*--manifest"):
        begin_retry(ledger)
    path.unlink()
    with pytest.raises(StorageError, match=r"failures.parquet is missing"):
        begin_retry(ledger)
    assert Ledger.open(ledger.folder).summary() is not None
    path.write_bytes(whole)
    make_left(again(ledger))
    each_row_is_there_once(ledger)


def test_the_job_is_taken_for_another_one_after_a_round(tmp_path: Path, manifest: str) -> None:
    ledger = start(str(tmp_path / "out"), manifest)
    make_left(ledger, failing(u3="bad_audio"))
    ledger = again(ledger)
    job = job_of(str(tmp_path / "out"), manifest)
    ledger.check_unchanged(job, plan_of(manifest))
    other = write_manifest(Path(manifest), count=20)
    with pytest.raises(InputError, match=rf"manifest {other}: was 14 rows"):
        ledger.check_unchanged(job, plan_of(other))


def test_an_output_that_was_moved_looks_for_its_rows_where_it_was(tmp_path: Path, manifest: str) -> None:
    ledger = start(str(tmp_path / "out"), manifest)
    make_left(ledger, failing(u3="bad_audio", u7="worker_crashed"))
    again(ledger)
    shutil.move(tmp_path / "out", tmp_path / "moved")
    moved = Ledger.open(Folder(str(tmp_path / "moved")))
    make_left(moved)
    each_row_is_there_once(moved)


def test_a_round_that_is_not_finished_counts_rows_twice(tmp_path: Path, manifest: str) -> None:
    ledger = start(str(tmp_path / "out"), manifest)
    make_left(ledger, failing(u3="bad_audio", u7="worker_crashed"))
    assert status(ledger.folder.url).state == "finished"
    ledger = again(ledger)
    found = status(ledger.folder.url)
    assert (found.state, found.shards_done, found.shards_total) == ("stopped", 4, 6)
    assert (found.rows_total, found.rows_done, found.rows_failed) == (ROWS, 10, 2)
    assert found.errors == {"null_tokens": 1, "token_out_of_range": 1}
    result = verify(ledger.folder.url)
    assert (result.findings, result.finished) == ([], False)
    make_left(ledger, failing(u3="bad_audio"))
    found = status(ledger.folder.url)
    assert (found.state, found.rows_total, found.rows_done, found.rows_failed) == ("finished", ROWS, 11, 3)


def test_two_runs_begin_the_same_round(output: str, manifest: str) -> None:
    """The one that has lost the output stops; should its record land late, it changes nothing."""
    ledger = start(output, manifest)
    make_left(ledger, failing(u3="bad_audio", u7="worker_crashed"))
    late = Timing(stale=-1e9, beat=1e6, settle=0.0)  # takes any lease for lapsed
    other = Ledger.open(Folder(output))
    with ledger.lease(timing=Timing(settle=0.0)) as lease:
        with other.lease(timing=late):
            with pytest.raises(LeaseHeld, match="lost the output"):
                begin_retry(ledger)
            assert other.reopened().rounds == []
            begun = begin_retry(other)
            assert begun is not None
        digest = begun.plan.digest
        # The first one did not look before it wrote.
        ledger._lease = None
        begin_retry(ledger)
        assert lease.lost is not None
    found = Ledger.open(Folder(output))
    assert (found.plan.digest, len(found.rounds)) == (digest, 1)
    make_left(found)
    each_row_is_there_once(found)


def test_a_worker_that_comes_late_puts_an_older_table_back(output: str, manifest: str) -> None:
    ledger = start(output, manifest)
    make_left(ledger, failing(u3="bad_audio", u7="worker_crashed"))
    old = Finisher(ledger)
    joined = [name for name in ledger.folder.list() if "/" not in name]
    newer = again(ledger)
    make_left(newer)
    before = {name: newer.folder.read(name) for name in joined}
    gathered = old.run(Gather(0))
    assert isinstance(gathered, Gathered)
    assert gathered.index is not None
    with pytest.raises(StorageError, match="another round was begun"):
        old.run(Join("index.parquet", [gathered.index]))
    assert {name: newer.folder.read(name) for name in joined} == before
    assert verify(output).findings == []


def test_a_command_that_is_given_again_until_it_ends_begins_a_round_each_time(
    tmp_path: Path, manifest: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Folder(str(tmp_path / "out"))
    start(folder.url, manifest)
    deadly: list[int] = []

    def make_shards(trade: Any, ledger: Ledger, share: Any, done: Collection[int], *rest: Any) -> None:
        for shard in set(range(len(ledger.plan))) - set(done):
            if shard in deadly:
                raise Killed
            ledger.commit(*made_job.prepare(ledger, shard, trouble=failing(u3="bad_audio")))

    @contextlib.contextmanager
    def workplace(*_: Any, **__: Any) -> Iterator[tuple[Share, Stop]]:
        yield making.FINISHER_SHARE, Stop()

    monkeypatch.setattr(making, "_make_shards", make_shards)
    monkeypatch.setattr(making, "workplace", workplace)
    trade: Any = SimpleNamespace(config=SimpleNamespace(log_level="info", storage_options={}))

    def state(*dies_at: int) -> tuple[int, bool]:
        deadly[:] = dies_at
        with contextlib.suppress(Killed):
            making.run(trade, folder, Console(quiet=True), retry=True)
        ledger = Ledger.open(folder)
        return len(ledger.rounds), ledger.summary() is not None

    assert state(2) == (0, False)  # in the job itself
    assert state(4) == (1, False)  # in its round
    assert state(4) == (1, False)
    assert state() == (1, True)
    assert state() == (2, True)


def test_a_kill_at_any_write_of_a_round_loses_a_row(
    output: str, manifest: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the end of the job to that of its round, which the next run goes on with: each write ends some run."""
    ledger = start(output, manifest)
    trouble = failing(u3="bad_audio", u7="worker_crashed", u12="not_finite")
    make_left(ledger, trouble)
    states = set()
    for kills in range(60):
        with monkeypatch.context() as patch:
            killing(patch, ("put", "upload", "create", "delete"), kills)
            try:
                ledger = Ledger.open(Folder(output))
                make_left(ledger, failing(u12="not_finite"))
                if not ledger.rounds:
                    begun = begin_retry(ledger)
                    assert begun is not None
                    make_left(begun, failing(u12="not_finite"))
                break
            except Killed:
                pass
        found = Ledger.open(Folder(output))
        states.add((len(found.rounds), len(found.committed())))
        assert [finding for finding in verify(output).findings if finding.code != "stray"] == []
    else:
        pytest.fail("the round never came to its end")
    assert states == {(0, 4), (1, 4), (1, 5), (1, 6)}
    ledger = Ledger.open(Folder(output))
    assert failures(ledger) == {"u5": "token_out_of_range", "u9": "null_tokens", "u12": "not_finite"}
    each_row_is_there_once(ledger)


def test_a_round_that_vanished_is_passed_over(tmp_path: Path, manifest: str) -> None:
    ledger = start(str(tmp_path / "out"), manifest)
    for _ in range(2):
        make_left(ledger, failing(u3="bad_audio"))
        ledger = again(ledger)
    first, second = (name for name in ledger.folder.list(ROUNDS) if name.endswith(".json"))
    whole = ledger.folder.read(first)
    ledger.folder.delete(first)
    with pytest.raises(StorageError, match="one is gone"):
        Ledger.open(ledger.folder)
    ledger.folder.put(first, whole)
    ledger.folder.put(second, b"{")
    with pytest.raises(StorageError, match=r"0002-.*is damaged"):
        Ledger.open(ledger.folder)
