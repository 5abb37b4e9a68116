"""What `benchmarks.scale` found, as a table for a reader."""

from __future__ import annotations

from typing import Any

from benchmarks import machine
from jobs.plan import RANGE_SHARDS


def markdown(found: dict[str, Any]) -> str:
    """The report for a reader."""
    job, run, resume = found["job"], found["run"], found["resume"]
    planning, ending, tasks = found["planning"], found["end_driver"], found["end_tasks"]
    rows = [
        ("planning, footers included", f"{planning['seconds']:.1f} s, {_gb(planning)}", "120 s, 2 GB"),
        ("the driver's queue, per shard", f"{run['driver_ms_per_shard']:.3f} ms of CPU", "5 ms"),
        ("a commit, in a worker", f"{run['commit_ms']:.2f} ms of CPU", ""),
        (
            f"resume at {resume['shards_done']} shards",
            f"{resume['seconds']:.1f} s, of which {resume['store_seconds']:.1f} s for {resume['lists']} listings; "
            f"{_gb(resume)}",
            "120 s, 2 GB",
        ),
        ("shards lost", str(run["lost"]), "0"),
        (
            "shards begun again",
            f"{run['begun_again']}, after {run['deaths']} deaths and a kill of the driver",
            "",
        ),
        (f"workers at work that counts, last {run['tail_hours']:.2g} h", f"{run['tail_efficiency']:.1%}", "90 %"),
        ("the end, the driver's part", f"{ending['seconds']:.1f} s for {ending['tasks']} tasks, {_gb(ending)}", ""),
        (
            f"the end, a range of {RANGE_SHARDS} shards and {tasks['rows_per_range']} rows",
            f"{tasks['gather_seconds']:.1f} s of a worker, {_gb(tasks)}",
            "",
        ),
    ]
    lines = [
        machine.line(found["machine"]),
        "",
        f"{job['rows']} rows in {job['files']} files and {job['shards']} shards, "
        f"{found['options']['workers']} workers, {run['hours']:.1f} hours by the simulation's clock.",
        "",
        "| | measured | bar |",
        "|---|---|---|",
        *(f"| {' | '.join(row)} |" for row in rows),
    ]
    if found["missed"]:
        lines += ["", f"Missed: {', '.join(found['missed'])}."]
    return "\n".join(lines)


def _gb(cost: dict[str, Any]) -> str:
    return f"{cost['peak_bytes'] / 1e9:.2f} GB at most (grown by {cost['grown_bytes'] / 1e9:.2f})"
