"""What a campaign measures with: commits as they come, and tries that did not end."""

from __future__ import annotations

import time
from pathlib import Path

from jobs.storage.folders import Folder
from tests.chaos.watch import Watch, committed, tries_in


def _commit(output: Path, name: str, attempt: str) -> None:
    path = output / "ledger/commits/0000" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f'{{"attempt": "{attempt}"}}')


def test_the_final_record_counts_before_the_smallest_try(tmp_path: Path) -> None:
    _commit(tmp_path, "0000000.bb.json", "bb")
    _commit(tmp_path, "0000000.aa.json", "aa")
    _commit(tmp_path, "0000001.json", "dd")
    _commit(tmp_path, "0000001.cc.json", "cc")
    _commit(tmp_path, ".half.part", "ee")
    assert committed(Folder(str(tmp_path))) == {0: "aa", 1: "dd"}


def test_the_pause_after_a_fault_ends_with_the_next_new_shard(tmp_path: Path) -> None:
    watch = Watch(Folder(str(tmp_path)), 0.0)
    watch.look()
    _commit(tmp_path, "0000000.json", "aa")
    watch.look()
    fault = time.monotonic()
    assert watch.next_commit(fault) is None
    time.sleep(0.05)
    watch.look()
    assert watch.next_commit(fault) is None  # the same shard again
    _commit(tmp_path, "0000001.json", "bb")
    watch.look()
    pause = watch.next_commit(fault)
    assert pause is not None
    assert 0.05 <= pause < time.monotonic() - fault + 0.001


def test_a_try_that_ended_is_not_left_behind(tmp_path: Path) -> None:
    watch = Watch(Folder(str(tmp_path / "out")), 0.0)
    watch.add_place(tmp_path / "scratch")
    ended, lost = tmp_path / "scratch/s3gen-a", tmp_path / "scratch/s3gen-b"
    ended.mkdir(parents=True)
    lost.mkdir()
    watch.look()
    ended.rmdir()
    [(path, seen)] = watch.left_behind()
    assert path == lost
    assert seen <= time.monotonic()


def test_files_of_shards_are_told_by_number(tmp_path: Path) -> None:
    for name in ("0000007-aa.parquet", "0000007-bb.tar", "readme.txt"):
        (tmp_path / "audio").mkdir(exist_ok=True)
        (tmp_path / "audio" / name).touch()
    assert tries_in(Folder(str(tmp_path))) == {"audio/0000007-aa.parquet": 7, "audio/0000007-bb.tar": 7}
