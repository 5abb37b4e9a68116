"""Parts of a token manifest in which something is wrong, among parts in which nothing is."""

from __future__ import annotations

import pyarrow as pa
import pytest

from jobs.ledger.records import CommitRecord
from jobs.tokenize.columns import TOKENS
from jobs.verify.findings import Verification
from jobs.verify.token_contents import TokenContents

RECORD = CommitRecord.from_bytes(
    b'{"shard": 3, "attempt": "a", "plan": "p", "ids": "i", "rows": 2, "rows_done": 2, "rows_failed": 0, "samples": 0,'
    b'"errors": {}, "problems": {}, "positions": 0, "padding": 0, "worker": "w", "tries": 1, "started_at": 0,'
    b'"finished_at": 0, "audio": null, "cuts": null, "index": null, "failures": null}'
)


def _found(tokens: list[list[int | None] | None]) -> list[str]:
    ids = pa.array([f"r{row}" for row in range(len(tokens))], pa.string())
    table = pa.table({"id": ids, "tokens": pa.array(tokens, TOKENS)})
    contents = TokenContents(Verification(finished=True, shards_total=1))
    return [finding.message for finding in contents.check(RECORD, table, [], {})]


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        ([6561], "'r1' has a token 6561, which is not in 0..6560"),
        ([5, -1, 7000], "'r1' has a token -1, which is not in 0..6560"),
        ([5, None], "'r1' has a token None, which is not in 0..6560"),
        ([], "'r1' has no tokens"),
        (None, "'r1' has no tokens"),
    ],
)
def test_a_row_without_good_tokens_passes(tokens: list[int | None] | None, message: str) -> None:
    assert _found([[0], tokens, [6560, 1]]) == [message]
    assert _found([[0], tokens]) == [message]


def test_good_rows_are_damage() -> None:
    assert _found([[0, 6560], [1]]) == []
    assert _found([]) == []
