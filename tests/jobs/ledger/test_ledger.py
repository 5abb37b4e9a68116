"""The commit protocol: what is committed counts once, and nothing else does."""

from __future__ import annotations

import json
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.errors import InputError, StorageError, StorageUnknown
from jobs.ledger.ledger import Ledger, exists
from jobs.ledger.records import CommitRecord, ids_digest
from jobs.manifest.manifest import Manifest
from jobs.plan import make_plan
from jobs.storage.folders import Folder
from tests.jobs.made_job import bare_record, job_of, make, plan_of, prepare, start, write_manifest

# --- the job ----------------------------------------------------------------------------------------------------------


def test_a_job_that_was_begun_opens_as_it_was_begun(output: str, manifest: str) -> None:
    folder = Folder(output)
    assert not exists(folder)
    ledger = start(output, manifest)
    assert exists(folder)
    again = Ledger.open(Folder(output))
    assert again.plan.digest == ledger.plan.digest
    assert again.job == ledger.job
    assert again.committed() == set()
    assert again.summary() is None
    again.check_unchanged(job_of(output, manifest), plan_of(manifest))
    assert start(output, manifest).job == ledger.job  # begun twice is begun once


def test_of_two_that_begin_different_jobs_one_is_refused(output: str, manifest: str) -> None:
    start(output, manifest)
    with pytest.raises(InputError, match="seed: was 3, is 4"):
        start(output, manifest, seed=4)


def test_an_output_without_a_job_says_so(output: str) -> None:
    with pytest.raises(InputError, match=r"no job was begun here \(there is no job.json\)") as caught:
        Ledger.open(Folder(output))
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("name", ["audio/my-own-recording.wav", "index.parquet", "ledger/commits/0000/0000000.json"])
def test_a_folder_with_something_else_in_it_is_no_output(output: str, manifest: str, name: str) -> None:
    folder = Folder(output)
    folder.put(name, b"precious")
    with pytest.raises(InputError, match=name):
        start(output, manifest)
    assert folder.list() == [name]


def test_a_start_that_was_killed_before_job_json_is_begun_again(
    output: str, manifest: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Folder(output)
    folder.put(f"ledger/plan-{plan_of(manifest).digest[:32]}.parquet", b"")
    start(output, manifest)
    assert Ledger.open(folder).plan.rows == 14


def test_a_place_that_cannot_be_written_is_bad_input(manifest: str) -> None:
    with pytest.raises(InputError, match="cannot write /proc/self/out"):
        start("/proc/self/out", manifest)


def test_damage_of_job_and_plan_is_found(output: str, manifest: str) -> None:
    ledger = start(output, manifest)
    folder, plan_name = ledger.folder, f"ledger/plan-{ledger.plan.digest[:32]}.parquet"
    job = folder.read("job.json")
    for name, data, says in (
        ("job.json", b"{", "job.json is damaged"),
        ("job.json", b"[]", "job.json is damaged"),
        (
            "job.json",
            job.replace(b'"version": 5', b'"version": 4'),
            "another version of s3gen .format 4, not 5.; finish it",
        ),
        (plan_name, b"x", "plan cannot be read"),
        (plan_name, make_plan(Manifest.scan(manifest), 2).to_bytes(), "names the plan"),
    ):
        whole = folder.read(name)
        folder.put(name, data)
        with pytest.raises(InputError, match=says):
            Ledger.open(folder)
        folder.put(name, whole)
    folder.delete(plan_name)
    with pytest.raises(InputError, match="is missing"):
        Ledger.open(folder)


def test_each_difference_is_named(tmp_path: Path, manifest: str) -> None:
    output = str(tmp_path / "out")
    ledger = start(output, manifest, engine={"dtype": "float32", "n_cfm_timesteps": None})
    changed = job_of(output, manifest, engine={"dtype": "float32", "n_cfm_timesteps": 4}, audio="wav", workers=8)
    changed["fingerprints"]["model"] = "g"
    changed["limit"] = 5
    with pytest.raises(InputError) as caught:
        ledger.check_unchanged(changed)
    lines = str(caught.value).splitlines()
    assert lines[1:-1] == [
        '  audio: was "flac", is "wav"',
        "  engine.n_cfm_timesteps: was null, is 4",
        '  fingerprints.model: was "f", is "g"',
        "  limit: was null, is 5",
    ]
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    "change",
    [
        {"workers": 9},
        {"log_level": "debug"},
        {"ray_address": "auto"},
        {"batch": {"max_frames": 1}},
        {"gpus_per_worker": 2},
    ],
)
def test_what_moves_no_sample_may_change(tmp_path: Path, manifest: str, change: dict[str, Any]) -> None:
    output = str(tmp_path / "out")
    start(output, manifest).check_unchanged(job_of(output, manifest, **change), plan_of(manifest))


def test_a_manifest_that_changed_is_named_by_file(tmp_path: Path, manifest: str) -> None:
    output = str(tmp_path / "out")
    ledger = start(output, manifest)
    time.sleep(0.01)
    write_manifest(Path(manifest), count=15)
    with pytest.raises(InputError, match=r"manifest .*manifest.parquet: was 14 rows in \d+ bytes .* is 15 rows in"):
        ledger.check_unchanged(job_of(output, manifest), plan_of(manifest))
    other = write_manifest(tmp_path / "in" / "other.parquet")
    with pytest.raises(InputError, match="absent"):
        ledger.check_unchanged(job_of(output, manifest), plan_of(other))


def test_another_cut_of_the_same_manifest_is_refused(tmp_path: Path, manifest: str) -> None:
    output = str(tmp_path / "out")
    ledger = start(output, manifest)
    with pytest.raises(InputError, match="plan: was 4 shards of 14 rows, is 2 shards of 5 rows"):
        ledger.check_unchanged(job_of(output, manifest), plan_of(manifest, limit=5))


# --- commits ----------------------------------------------------------------------------------------------------------


def test_a_shard_is_done_when_its_record_is_there_and_not_before(output: str, manifest: str) -> None:
    ledger = start(output, manifest)
    attempt, record = prepare(ledger, 2)
    assert Ledger.open(Folder(output)).committed() == set()
    assert ledger.commit(attempt, record)
    again = Ledger.open(Folder(output))
    assert again.committed() == {2}
    assert list(again.records()) == [record]


def test_the_second_try_of_a_shard_loses_and_takes_its_files_away(output: str, manifest: str) -> None:
    ledger = start(output, manifest)
    tries = sorted((prepare(ledger, 1) for _ in range(3)), key=lambda each: each[0].id)
    assert ledger.commit(*tries[0])
    for attempt, record in tries[1:]:
        assert not Ledger.open(Folder(output)).commit(attempt, record)
    (counting,) = ledger.records()
    assert counting == tries[0][1]
    if not ledger.job["conditional"]:
        return  # their files stay until the end: see test_the_end_and_two_tries_between_its_look_and_its_choice
    named = {file.name for file in counting.files()}
    assert {
        name for name in ledger.folder.list() if name.startswith(("audio/", "ledger/index", "ledger/fail"))
    } == named


def test_tries_that_commit_at_the_same_moment_leave_one_whole_shard(output: str, manifest: str) -> None:
    start(output, manifest)
    ledgers = [Ledger.open(Folder(output)) for _ in range(5)]
    tries = [prepare(ledger, 1) for ledger in ledgers]
    barrier = threading.Barrier(len(tries))

    def race(number: int) -> None:
        ledgers[number].folder.can_create()
        barrier.wait()
        ledgers[number].commit(*tries[number])

    threads = [threading.Thread(target=race, args=(number,)) for number in range(len(tries))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (counting,) = ledgers[0].records()
    assert counting in [record for _, record in tries]
    assert all(ledgers[0].folder.size(file.name) == file.bytes for file in counting.files())


def test_the_same_try_may_commit_again(output: str, manifest: str) -> None:
    ledger = start(output, manifest)
    attempt, record = prepare(ledger, 0)
    assert ledger.commit(attempt, record)
    assert ledger.commit(attempt, record)
    assert all(ledger.folder.exists(file.name) for file in record.files())


def test_a_commit_whose_answer_is_lost_keeps_its_files(
    output: str, manifest: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = start(output, manifest)
    ledger.folder.can_create()
    attempt, record = prepare(ledger, 0)
    with monkeypatch.context() as patch:
        for kind in ("put", "create"):
            patch.setattr(Folder, kind, _landing_then_lost(getattr(Folder, kind)))
        with pytest.raises(StorageUnknown):
            ledger.commit(attempt, record)
    assert all(ledger.folder.exists(file.name) for file in record.files())
    assert Ledger.open(Folder(output)).committed() == {0}


def _landing_then_lost(write: Any) -> Any:
    def lost(self: Folder, name: str, data: bytes) -> None:
        write(self, name, data)
        raise StorageUnknown("connection reset by peer")

    return lost


def test_a_record_that_does_not_fit_is_refused(tmp_path: Path, manifest: str) -> None:
    ledger = start(str(tmp_path / "out"), manifest)
    attempt, record = prepare(ledger, 0)
    for change in ({"shard": 1}, {"attempt": "x"}, {"plan": "p"}, {"rows": 9}, {"rows_failed": 1}):
        with pytest.raises(ValueError, match="shard"):
            ledger.commit(attempt, replace(record, **change))  # type: ignore[arg-type]
    assert ledger.committed() == set()


def test_a_damaged_record_is_not_passed_over(tmp_path: Path, manifest: str) -> None:
    ledger = start(str(tmp_path / "out"), manifest)
    make(ledger, 0)
    (name,) = ledger.folder.list("ledger/commits/")
    whole = ledger.folder.read(name)
    for data in (b"", b"{}", b"[1]", whole.replace(ledger.plan.digest.encode(), b"0" * 64)):
        ledger.folder.put(name, data)
        with pytest.raises(StorageError, match=r"0000000.json is"):
            list(ledger.records())


def test_records_survive_their_json() -> None:
    record = bare_record(rows_done=0, rows_failed=1, errors={"null_id": 1}, problems={"dc": 1}, started_at=1.5)
    assert CommitRecord.from_bytes(record.to_bytes()) == record


def test_shards_of_many_ranges_are_known_from_names(tmp_path: Path) -> None:
    """Names beyond the plan, of another kind or of another range are no shards."""
    path = tmp_path / "manifest.parquet"
    columns = {"id": [""] * 2_500, "voice_id": [""] * 2_500, "tokens": pa.array([[1]] * 2_500)}
    pq.write_table(pa.table(columns), path)
    plan = make_plan(Manifest.scan(str(path)), 1)
    ledger = Ledger.start(Folder(str(tmp_path / "out")), job_of(str(tmp_path / "out"), str(path)), plan)
    for shard in (0, 999, 1_000, 2_499):
        ledger.folder.put(f"ledger/commits/{shard // 1_000:04d}/{shard:07d}.json", b"")
    others = (
        "0002/0002500.json",
        "0000/0001001.json",
        "0001/chosen-00000001.json",
        "0001/0001002.txt",
        "0001/1002.json",
    )
    for name in others:
        ledger.folder.put(f"ledger/commits/{name}", b"")
    assert ledger.committed() == {0, 999, 1_000, 2_499}
    assert [list(ledger.record_names(number)) for number in range(3)] == [[0, 999], [1_000], [2_499]]


def test_ids_that_look_alike_when_joined_have_other_digests() -> None:
    digests = {ids_digest(pa.array(ids, pa.string())) for ids in (["ab", "c"], ["a", "bc"], ["abc"], ["abc", ""])}
    digests |= {ids_digest(pa.array(["abc", None], pa.string())), ids_digest(pa.array([None, "abc"], pa.string()))}
    assert len(digests) == 6
    for kind in (pa.large_string(), pa.string_view(), pa.dictionary(pa.int8(), pa.string())):
        column = pa.chunked_array([pa.array(["abc"], kind), pa.array([None], kind)])
        assert ids_digest(column) == ids_digest(pa.array(["abc", None]))
    assert ids_digest(pa.array([b"\xff"], pa.binary()).view(pa.string())) == ids_digest(pa.array([b"\xff"]))


def test_job_json_is_readable_and_says_what_the_job_is(tmp_path: Path, manifest: str) -> None:
    start(str(tmp_path / "out"), manifest)
    job = json.loads((tmp_path / "out" / "job.json").read_text())
    assert job["config"]["manifest"] == manifest
    assert job["plan"] == plan_of(manifest).digest


def test_the_command_that_goes_on_lacks_what_the_store_needs(tmp_path: Path) -> None:
    manifest = write_manifest(tmp_path / "m.parquet")
    ledger = start(str(tmp_path / "my speech"), manifest)
    assert ledger.resume_command == f"s3gen resume '{ledger.folder.url}'"
    # For its inputs, where the output is local.
    reached = Ledger.open(Folder(ledger.folder.url, {"key": "AKIA", "secret": "hunter22"})).reopened()
    assert reached.resume_command == f"s3gen resume '{ledger.folder.url}' --storage-options FILE"
