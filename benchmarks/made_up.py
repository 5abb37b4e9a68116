"""What jobs that nobody made record of themselves."""

from __future__ import annotations

from typing import Any

from jobs.ledger.records import CommitRecord, StoredFile
from jobs.plan import Plan
from s3gen.constants import SAMPLE_RATE

ROW_SAMPLES = 6 * SAMPLE_RATE
EPOCH = 1.7e9  # unix time at the virtual clock's 0


def made_up_job() -> dict[str, Any]:
    """What the output of a made-up job records of it."""
    names = {"model": "random:tiny", "manifest": "manifest.parquet", "voices": "voices.parquet", "output": "speech"}
    return {"config": {"seed": 0, **names}, "fingerprints": {"model": "", "voices": ""}, "versions": {}, "limit": None}


def made_up_record(
    plan: Plan,
    shard: int,
    attempt: str,
    *,
    ids: str,
    seconds: tuple[float, float],
    audio: StoredFile | None,
    index: StoredFile,
) -> CommitRecord:
    """Of a try at a shard of which every row was made.

    Args:
        ids: their digest.
        seconds: of the job's clock, at which it began and ended.
    """
    rows = plan.shard(shard).rows
    began, ended = seconds
    return CommitRecord(
        shard=shard,
        attempt=attempt,
        plan=plan.digest,
        ids=ids,
        rows=rows,
        rows_done=rows,
        rows_failed=0,
        samples=rows * ROW_SAMPLES,
        errors={},
        problems={},
        positions=0,
        padding=0,
        worker="there:7",
        tries=1,
        started_at=EPOCH + began,
        finished_at=EPOCH + ended,
        audio=audio,
        index=index,
        failures=None,
    )
