"""The commit protocol in stores without put-if-absent, where the end of a job decides which tries count."""

from __future__ import annotations

from typing import Any

import pytest

from jobs.errors import StorageError, StorageUnknown
from jobs.finish import finalise
from jobs.ledger.lease import Timing
from jobs.ledger.ledger import Ledger
from jobs.ledger.records import Attempt, CommitRecord
from jobs.storage.folders import Folder
from jobs.verify.verify import verify
from tests.jobs.made_job import make, prepare, start, table_in
from tests.jobs.object_stores import ignore_conditions

AT_ONCE = Timing(settle=0.0)  # nobody else wants the lease


@pytest.fixture
def blind(place: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """A store that silently overwrites."""
    ignore_conditions(monkeypatch)
    return place


def test_a_commit_that_cannot_be_compared_is_not_called_failed(
    blind: str, manifest: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the worker would delete the files of a record that counts."""
    ledger = start(blind, manifest)
    ledger.folder.can_create()
    attempt, record = prepare(ledger, 0)
    with monkeypatch.context() as patch:
        patch.setattr(Folder, "list", _forbidden)
        with pytest.raises(StorageUnknown, match="is not known: no rights"):
            ledger.commit(attempt, record)
    assert ledger.committed() == {0}


def _forbidden(self: Folder, prefix: str = "") -> list[str]:
    raise StorageError("no rights")


def _two_tries(ledger: Ledger) -> list[tuple[Attempt, CommitRecord]]:
    """At one shard, in the order of their names; the second is committed, as all other shards are."""
    tries = sorted((prepare(ledger, 1) for _ in range(2)), key=lambda each: each[0].id)
    assert ledger.commit(*tries[1])
    for shard in (0, 2, 3):
        make(ledger, shard)
    return tries


def test_a_late_smaller_try_does_not_undo_the_choice(
    blind: str, manifest: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where nothing is put if absent, a zombie may commit after the end has begun to delete."""
    ledger = start(blind, manifest)
    zombie, chosen = _two_tries(ledger)
    with monkeypatch.context() as patch:
        patch.setattr("jobs.finish._make_tables", _interrupt)
        with pytest.raises(KeyboardInterrupt):
            finalise(ledger)
    assert not Ledger.open(Folder(blind)).commit(*zombie)
    assert not any(ledger.folder.exists(file.name) for file in zombie[1].files())
    finalise(Ledger.open(Folder(blind)))
    assert verify(blind).findings == []
    assert chosen[1].audio is not None
    assert chosen[1].audio.name in table_in(Folder(blind), "index.parquet")["shard"].to_pylist()


def _interrupt(*args: Any) -> None:
    raise KeyboardInterrupt


def test_a_choice_of_a_run_that_lost_the_lease_lands_late_and_is_followed(
    blind: str, manifest: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The write of the first run's choice hangs; another run takes over, finishes, and then it lands."""
    ledger = start(blind, manifest)
    smaller, _ = _two_tries(ledger)
    late: list[tuple[str, bytes]] = []

    def hangs(self: Folder, name: str, data: bytes) -> None:
        if "/chosen-" in name:
            late.append((name, data))
            raise StorageUnknown("timed out")
        plain(self, name, data)

    plain = Folder.put
    with monkeypatch.context() as patch:
        patch.setattr(Folder, "put", hangs)
        with ledger.lease(timing=AT_ONCE), pytest.raises(StorageUnknown):
            finalise(ledger)
    again = Ledger.open(Folder(blind))
    assert again.commit(*smaller)
    with again.lease(timing=AT_ONCE):
        finalise(again)
    for name, data in late:
        ledger.folder.put(name, data)
    assert late
    assert verify(blind).findings == []


def test_the_end_and_two_tries_between_its_look_and_its_choice(
    blind: str, manifest: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The end has seen one try; a smaller one commits, the first learns of it: its files must stay."""
    ledger, worker = start(blind, manifest), Ledger.open(Folder(blind))
    smaller, seen = _two_tries(ledger)
    plain, happened = Folder.put, []

    def overtaken(self: Folder, name: str, data: bytes) -> None:
        if "/chosen-" in name and not happened:
            happened.append(name)
            assert worker.commit(*smaller)
            assert not worker.commit(*seen)
        plain(self, name, data)

    with monkeypatch.context() as patch:
        patch.setattr(Folder, "put", overtaken)
        finalise(ledger)
    assert happened
    assert verify(blind).findings == []


def test_a_try_that_asks_after_its_record_was_fixed_has_won(blind: str, manifest: str) -> None:
    ledger = start(blind, manifest)
    tries = [prepare(ledger, shard) for shard in range(4)]
    assert all(ledger.commit(*each) for each in tries)
    finalise(ledger)
    assert ledger.commit(*tries[1])
    finalise(ledger)
    assert verify(blind).findings == []


def test_an_output_moved_to_a_store_without_the_condition_is_not_committed_to(
    place: str, manifest: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    start(place, manifest)
    ignore_conditions(monkeypatch)
    ledger = Ledger.open(Folder(place))
    with pytest.raises(StorageError, match="no atomic put-if-absent"):
        make(ledger, 0)
