"""Parts of a token manifest, held against what tokens are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

import pyarrow as pa
import pyarrow.compute as pc

from jobs.ledger.records import CommitRecord
from jobs.verify.findings import Finding, Verification
from s3gen.constants import SAMPLE_RATE, VOCAB_SIZE


class TokenContents:
    """What the shards of a job hold that makes tokens of audio. The audio is not read again.

    Args:
        result: gets the number of rows.
    """

    def __init__(self, result: Verification) -> None:
        self._result = result

    def samples(self, index: pa.Table) -> int:
        """Of a shard's part of the table, what its record counts: the source's length, as samples at 24 kHz."""
        return sum(round(seconds * SAMPLE_RATE) for seconds in index["audio_seconds"].to_pylist())

    def check(
        self, record: CommitRecord, index: pa.Table, failed: Sequence[int | None], contents: Mapping[str, bytes]
    ) -> Iterator[Finding]:
        """Whether each row has tokens, within their range, under an id of its own in the shard.

        Args:
            failed: the positions in the shard of the rows of its part of the failures; None where it has no such row.
            contents: its files by name, of which the table is one.
        """
        where = f"shard {record.shard}"
        self._result.rows_checked += index.num_rows
        if None in failed:
            message = f"{failed.count(None)} failures are of rows that the plan puts elsewhere"
            yield Finding("row_unknown", where, message)
        ids = index["id"].to_pylist()
        for row_id, times in Counter(ids).items():
            if times > 1:
                yield Finding("row_twice", where, f"{row_id!r} is in the table {times} times")
        for row_id, found in _wrong(ids, index["tokens"]):
            yield Finding("tokens", where, f"{row_id!r} has {found}")


def _wrong(ids: Sequence[str], tokens: pa.ChunkedArray) -> Iterator[tuple[str, str]]:
    """Rows whose tokens are none, and what they have."""
    values = pc.list_flatten(tokens)
    span = pc.min_max(values)
    lengths = pc.fill_null(pc.list_value_length(tokens), 0)
    if (
        not values.null_count
        and pc.all(pc.greater(lengths, 0)).as_py() is not False
        and (not len(values) or (span["min"].as_py() >= 0 and span["max"].as_py() < VOCAB_SIZE))
    ):
        return
    for row_id, row in zip(ids, tokens.to_pylist(), strict=True):
        wrong = [token for token in row or [] if token is None or not 0 <= token < VOCAB_SIZE]
        if wrong or not row:
            yield row_id, f"a token {wrong[0]}, which is not in 0..{VOCAB_SIZE - 1}" if wrong else "no tokens"
