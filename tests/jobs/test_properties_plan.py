"""Whatever the files look like: every row in one shard, shards of about one size, the same bytes one plan."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from jobs.manifest.manifest import Manifest
from jobs.plan import Plan, make_plan
from tests.jobs.forged_parquet import parquet
from tests.jobs.test_plan import Groups, manifest_of

bounded = settings(max_examples=100)
groups = st.tuples(st.integers(0, 2_000), st.integers(0, 1_500))
files = st.lists(st.lists(groups, max_size=6), min_size=1, max_size=4).filter(
    lambda found: any(rows for file in found for rows, _ in file)
)


@bounded
@given(files, st.integers(1, 700), st.none() | st.integers(1, 3_000))
def test_a_shard_is_much_larger_than_another(found: list[Groups], shard_rows: int, limit: int | None) -> None:
    """Of rows none has more than asked; of tokens none more than fits, by half a row; the others are full of one."""
    manifest = manifest_of(found)
    plan = make_plan(manifest, shard_rows, limit)
    rows = np.diff(plan.starts)
    means = np.concatenate([np.repeat(mean, count) for file in found for count, mean in file])[: plan.rows]
    tokens = np.add.reduceat(means, plan.starts[:-1]) if plan.rows else np.zeros(0)
    every = [(count, mean) for file in found for count, mean in file]
    target = shard_rows * sum(count * mean for count, mean in every) / sum(count for count, _ in every)
    longest = max(mean for count, mean in every if count)
    assert plan.rows == min(manifest.rows, limit or manifest.rows)
    assert rows.min() >= 1
    assert rows.max() <= shard_rows
    assert (tokens <= np.maximum(target, longest) + longest / 2 + 1e-6 * target).all()
    full = (rows == shard_rows) | (tokens >= target - longest)
    assert full[:-1].all()


@bounded
@given(files, st.integers(1, 700))
def test_a_row_is_in_no_shard_or_two(found: list[Groups], shard_rows: int) -> None:
    plan = make_plan(manifest_of(found), shard_rows)
    reached = [(0, 0)]
    for shard in plan.shards():
        assert shard.rows == sum(span.stop - span.start for span in shard.spans)
        for span in shard.spans:
            file, at = reached[-1]
            if span.file != file:
                assert at == sum(rows for rows, _ in found[file])
                assert all(not any(rows for rows, _ in found[between]) for between in range(file + 1, span.file))
                at = 0
            assert span.start == at < span.stop
            reached.append((span.file, span.stop))
    assert reached[-1][1] == sum(rows for rows, _ in found[reached[-1][0]])
    assert plan.rows == sum(rows for file in found for rows, _ in file)


@settings(bounded, max_examples=25)
@given(
    st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=20), min_size=1, max_size=3),
    st.integers(1, 7),
    st.integers(1, 9),
)
def test_the_same_bytes_are_another_plan(lengths: list[list[int]], row_group: int, shard_rows: int) -> None:
    with tempfile.TemporaryDirectory() as name:
        for number, file in enumerate(lengths):
            ids = [f"{number}-{at}" for at in range(len(file))]
            columns = {"id": ids, "tokens": [[1] * length for length in file], "voice_id": ids}
            (Path(name) / f"{number}.parquet").write_bytes(parquet(pa.table(columns), row_group_size=row_group))
        first, second = (make_plan(Manifest.scan(name), shard_rows) for _ in range(2))
        assert first.digest == second.digest == Plan.from_bytes(first.to_bytes()).digest
        assert first.to_bytes() == second.to_bytes()
        other = make_plan(Manifest.scan(name), shard_rows + 1)
        assert (other.digest == first.digest) == (other.starts.tolist() == first.starts.tolist())
        table = first.manifest.read([span for shard in first.shards() for span in shard.spans])
    assert [len(row) for row in table["tokens"].to_pylist()] == [length for file in lengths for length in file]
