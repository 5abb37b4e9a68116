"""The plan: every row in one shard, whatever the files look like."""

from __future__ import annotations

import time

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jobs.errors import InputError
from jobs.manifest.manifest import Manifest, ManifestFile, RowGroups
from jobs.plan import RANGE_SHARDS, Plan, ShardSet, make_plan

COLUMNS = pa.schema([("id", pa.string()), ("tokens", pa.list_(pa.int32())), ("voice_id", pa.string())])

Groups = list[tuple[int, int]]  # rows and mean tokens of each row group of a file


def manifest_of(files: list[Groups]) -> Manifest:
    return Manifest(
        files=tuple(
            ManifestFile(url=f"/m/{n}.parquet", rows=sum(r for r, _ in f), size=n, etag="e", footer_digest="d")
            for n, f in enumerate(files)
        ),
        columns=COLUMNS,
        groups=tuple(
            RowGroups(np.array([r for r, _ in f], np.int64), np.array([r * mean for r, mean in f], np.int64))
            for f in files
        ),
    )


manifests = st.lists(
    st.lists(st.tuples(st.integers(0, 40), st.integers(0, 9)), max_size=5), min_size=1, max_size=5
).filter(lambda files: any(rows for file in files for rows, _ in file))


@settings(max_examples=200, deadline=None)
@given(manifests, st.integers(1, 50), st.one_of(st.none(), st.integers(1, 100)))
def test_every_row_is_in_exactly_one_shard_in_order(files: list[Groups], shard_rows: int, limit: int | None) -> None:
    manifest = manifest_of(files)
    plan = make_plan(manifest, shard_rows, limit)
    every = [(file, row) for file, groups in enumerate(files) for row in range(sum(rows for rows, _ in groups))]
    wanted = every if limit is None else every[:limit]
    planned = [
        (span.file, row) for shard in plan.shards() for span in shard.spans for row in range(span.start, span.stop)
    ]
    assert planned == wanted
    assert plan.rows == len(wanted)
    assert all(0 < shard.rows <= shard_rows for shard in plan.shards())
    assert [shard.index for shard in plan.shards()] == list(range(len(plan)))
    assert all(shard.rows == sum(s.stop - s.start for s in shard.spans) for shard in plan.shards())


@settings(max_examples=50, deadline=None)
@given(manifests, st.integers(1, 50))
def test_a_stored_plan_is_the_same_plan(files: list[Groups], shard_rows: int) -> None:
    plan = make_plan(manifest_of(files), shard_rows)
    again = Plan.from_bytes(plan.to_bytes())
    assert again.digest == plan.digest
    assert list(again.shards()) == list(plan.shards())
    assert again.manifest == plan.manifest
    assert again.manifest.digest == plan.manifest.digest


def test_rows_of_equal_length_make_full_shards() -> None:
    plan = make_plan(manifest_of([[(1_000, 250), (1_000, 250)], [(500, 250)]]), 512)
    assert [shard.rows for shard in plan.shards()] == [512, 512, 512, 512, 452]


def test_long_rows_make_smaller_shards_of_about_the_same_audio() -> None:
    plan = make_plan(manifest_of([[(10_000, 100)], [(10_000, 500)]]), 300)
    rows = [shard.rows for shard in plan.shards()]
    assert max(rows) == 300
    assert set(rows[-20:-1]) == {180}  # 300 rows of the mean, 300 tokens, are 180 of 500


def test_the_digest_changes_with_every_cut_and_every_input() -> None:
    base = manifest_of([[(100, 10)]])
    digests = {make_plan(base, 10).digest, make_plan(base, 11).digest, make_plan(base, 10, 99).digest}
    digests.add(make_plan(manifest_of([[(100, 10)], []]), 10).digest)
    assert len(digests) == 4
    assert make_plan(base, 10).digest in digests


def test_a_damaged_plan_is_found_out() -> None:
    data = make_plan(manifest_of([[(100, 10)]]), 10).to_bytes()
    forged = make_plan(manifest_of([[(100, 10)]]), 20)
    forged.__dict__["digest"] = "0" * 64
    for bad in (b"", b"not a plan", data[:-30], forged.to_bytes()):
        with pytest.raises(InputError, match="plan"):
            Plan.from_bytes(bad)


@pytest.mark.parametrize(("shard_rows", "limit"), [(0, None), (-1, None), (1, 0)])
def test_nonsense_sizes_are_refused(shard_rows: int, limit: int | None) -> None:
    with pytest.raises(ValueError, match="must be 1 or more, not"):
        make_plan(manifest_of([[(100, 10)]]), shard_rows, limit)


def test_there_is_no_shard_beyond_the_last() -> None:
    plan = make_plan(manifest_of([[(100, 10)]]), 10)
    for index in (-1, 10):
        with pytest.raises(ValueError, match=f"no shard {index}: the plan has 10"):
            plan.shard(index)


def test_a_set_of_shards_is_like_any_set() -> None:
    shards = ShardSet(2_000)
    shards.add([5, 1_999])
    shards.add(np.array([0], np.int64))
    shards.add([])
    assert shards == {0, 5, 1_999}
    assert list(shards) == [0, 5, 1_999]
    assert len(shards) == 3
    assert [n in shards for n in (0, 1, -1, 2_000, "0")] == [True, False, False, False, False]
    assert shards - {5} == {0, 1_999}


def test_the_rows_of_some_shards_are_those_of_each(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = make_plan(manifest_of([[(1_000, 3), (500, 40)], [(777, 9)]]), 64)
    done = ShardSet(len(plan))
    done.add(range(0, len(plan), 3))
    assert plan.rows_of(done) == sum(plan.shard(n).rows for n in range(0, len(plan), 3))
    assert plan.rows_of(ShardSet(len(plan))) == 0


@pytest.mark.parametrize("shards", [1, 999, 1_000, 1_001, 2_500])
def test_ranges_hold_every_shard_once(shards: int) -> None:
    plan = make_plan(manifest_of([[(shards, 10)]]), 1)
    assert len(plan) == shards
    assert [shard for number in range(plan.ranges) for shard in plan.range(number)] == list(range(shards))
    for number in range(plan.ranges):
        assert {f"{shard:07d}"[:4] for shard in plan.range(number)} == {f"{number:04d}"}
        assert len(plan.range(number)) <= RANGE_SHARDS


def test_a_billion_rows_are_planned_in_seconds() -> None:
    files: list[Groups] = [[(10_000, 150 + group % 7) for group in range(100)] for _ in range(1_000)]
    manifest = manifest_of(files)
    began = time.process_time()
    plan = make_plan(manifest, 1_000)
    again = Plan.from_bytes(plan.to_bytes())
    assert (again.rows, again.digest) == (10**9, plan.digest)
    assert len(plan) > 10**6
    assert time.process_time() - began < 30  # about 2 on one core
