"""Planning, driving, resuming and finishing at scale: ``python -m benchmarks.scale --shards 100000 --report F``.

What grows with a job beside its audio is what the driver does and remembers. Measured, with the package's own code:

- planning, from the footers of real Parquet files (one file under many names);
- a job of many workers, simulated (`benchmarks.simulation`), whose driver is killed halfway;
- what the resume then costs: reading what is committed from the names of a store in memory;
- the end: the driver's part with all shards, and the workers' part on some of them, with real parts of the index.

Says 1 when a bar is missed.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from benchmarks import machine
from benchmarks.committed_job import committed_job
from benchmarks.made_up import EPOCH, made_up_job
from benchmarks.scale_table import markdown
from benchmarks.simulation import Cluster, Latency, MemoryStore, Simulation, useful_share
from jobs.duplicates import Grouped, partitions
from jobs.finish import Compare, Describe, Finisher, Gather, Gathered, Join, Part, Task, finalise
from jobs.ledger.commits import LIST_THREADS
from jobs.ledger.ledger import Ledger
from jobs.ledger.tally import Tally
from jobs.manifest.manifest import Manifest
from jobs.plan import RANGE_SHARDS, Plan, ShardSet, make_plan
from jobs.storage.folders import Folder

GROUP_ROWS, FILE_GROUPS = 10_000, 100  # of the manifest's files
TOKENS = (150, 170)  # of a row: the mean of a row group is one of them
BARS = {
    "planning_seconds": 120.0,
    "planning_bytes": 2e9,
    "driver_ms_per_shard": 5.0,
    "resume_seconds": 120.0,
    "resume_bytes": 2e9,
    "lost": 0.0,
    "tail_efficiency": 0.9,
}
CURVE_POINTS = 400
HOUR = 3600.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print and write the report; 1 when a bar is missed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scale", description="A job's costs at scale.")
    add = parser.add_argument
    add("--shards", type=int, default=100_000, help="of the job, about")
    add("--shard-rows", type=int, default=1_000, help="the most rows of a shard")
    add("--workers", type=int, default=1_000, help="of the simulated job")
    add("--shard-seconds", type=float, default=60.0, help="that a worker takes for a shard, median")
    add("--finish-ranges", type=int, default=2, help=f"ranges of {RANGE_SHARDS} shards that are finished for real")
    add("--finish-rows", type=int, default=1_000, help="rows of each of their shards")
    add("--seed", type=int, default=0)
    add("--report", type=Path, help="where to write everything as JSON")
    options = parser.parse_args(arguments)
    found = measure(options)
    if options.report:
        options.report.write_text(json.dumps(found, indent=1))
    print(markdown(found))
    return 1 if found["missed"] else 0


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Everything that is measured, as the report has it."""
    with tempfile.TemporaryDirectory(prefix="benchmark-") as folder:
        plan, planning = _planned(options, Path(folder))
    run, resume, ending = _run(plan, options)
    figures = {
        "planning_seconds": planning.seconds,
        "planning_bytes": planning.peak_bytes,
        "driver_ms_per_shard": run["driver_ms_per_shard"],
        "resume_seconds": resume["seconds"],
        "resume_bytes": resume["peak_bytes"],
        "lost": run["lost"],
        "tail_efficiency": run["tail_efficiency"],
    }
    return {
        "kind": "scale",
        "machine": machine.describe(torch.device("cpu")),
        "options": {name: value for name, value in vars(options).items() if name != "report"},
        "job": {"rows": plan.rows, "shards": len(plan), "files": len(plan.manifest.files)},
        "planning": {"seconds": planning.seconds, "peak_bytes": planning.peak_bytes, "grown_bytes": planning.grown},
        "run": run,
        "resume": resume,
        "end_driver": ending,
        "end_tasks": _finished(options),
        "bars": BARS,
        "missed": _missed(figures),
    }


def _missed(figures: dict[str, float]) -> list[str]:
    worse = {name: value > BARS[name] for name, value in figures.items() if name != "tail_efficiency"}
    worse["tail_efficiency"] = figures["tail_efficiency"] < BARS["tail_efficiency"]
    return [name for name, is_worse in worse.items() if is_worse]


# --- seconds and memory -----------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Cost:
    """Of a step, of this process: seconds by the clock and of CPU, the most memory in all, and what it had before."""

    seconds: float = 0.0
    cpu: float = 0.0
    peak_bytes: int = 0
    before_bytes: int = 0

    @property
    def grown(self) -> int:
        """Bytes that the step needed beside what was there."""
        return max(0, self.peak_bytes - self.before_bytes)


@contextmanager
def _costing() -> Iterator[Cost]:
    # Linux forgets the highest mark so far; elsewhere it is that of the whole process, which is no less.
    if os.access("/proc/self/clear_refs", os.W_OK):
        Path("/proc/self/clear_refs").write_text("5")
    cost = Cost(before_bytes=machine.peak_resident_bytes())
    begun, cpu = time.perf_counter(), time.process_time()
    yield cost
    cost.seconds, cost.cpu = time.perf_counter() - begun, time.process_time() - cpu
    cost.peak_bytes = machine.peak_resident_bytes()


# --- planning ---------------------------------------------------------------------------------------------------------


def _planned(options: argparse.Namespace, folder: Path) -> tuple[Plan, Cost]:
    rows = options.shards * options.shard_rows
    groups = max(1, rows // GROUP_ROWS)
    files = max(1, groups // FILE_GROUPS)
    _write_manifest(folder, files, min(groups, FILE_GROUPS))
    with _costing() as cost:
        plan = make_plan(Manifest.scan(str(folder)), options.shard_rows)
        Plan.from_bytes(plan.to_bytes())
    return plan, cost


def _write_manifest(folder: Path, files: int, groups: int) -> None:
    """One file under many names: each has a footer of its own to be read, and they take the disk of one."""
    first = folder / "part-00000.parquet"
    schema = pa.schema([("id", pa.string()), ("voice_id", pa.string()), ("tokens", pa.list_(pa.int32()))])
    with pq.ParquetWriter(first, schema) as writer:
        for group in range(groups):
            count = TOKENS[group % 2]
            tokens = pa.ListArray.from_arrays(
                np.arange(GROUP_ROWS + 1, dtype=np.int32) * count, pa.array(np.zeros(GROUP_ROWS * count, np.int32))
            )
            same = pa.array([""] * GROUP_ROWS)
            writer.write_table(pa.table([same, same, tokens], schema=schema), row_group_size=GROUP_ROWS)
    for number in range(1, files):
        os.link(first, folder / f"part-{number:05d}.parquet")


# --- the job ----------------------------------------------------------------------------------------------------------


def _run(plan: Plan, options: argparse.Namespace) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """A job whose driver is killed at half; what the resume and the driver's part of the end cost."""
    store, cluster = MemoryStore(), Cluster(workers=options.workers, shard_seconds=options.shard_seconds)
    folder = Folder.of(store, "simulated://job")
    ledger = Ledger.start(folder, made_up_job(), plan)
    intervals = np.full((len(plan), 2), np.nan)
    begun, cpu = time.perf_counter(), time.process_time()
    first = Simulation(ledger, cluster, ShardSet(len(plan)), intervals, options.seed)
    first.run(0.0, stop_after=len(plan) // 2)
    ledger, done, resume = _resumed(store)
    second = Simulation(ledger, cluster, done, intervals, options.seed + 1)
    second.run(first.clock + 30)
    costs = [first.costs, second.costs]
    committed = ledger.committed()
    simulated = {"seconds": time.perf_counter() - begun, "cpu_seconds": time.process_time() - cpu}
    stop = float(np.nanmax(intervals[:, 1]))
    run = {
        "hours": stop / HOUR,
        "lost": len(plan) - len(committed) + len(first.schedule.given_up) + len(second.schedule.given_up),
        "begun_again": sum(each.begun for each in costs) - len(plan),
        "deaths": sum(each.deaths for each in costs),
        "driver_ms_per_shard": sum(each.driver for each in costs) * 1e3 / len(plan),
        "commit_ms": sum(each.commits for each in costs) * 1e3 / max(1, sum(each.commit_calls for each in costs)),
        "tail_efficiency": useful_share(intervals, cluster.workers, max(0.0, stop - HOUR), stop),
        "tail_hours": min(HOUR, stop) / HOUR,
        "simulation": simulated,
        "curve": _curve(intervals, cluster.workers, stop),
    }
    return run, resume, _driver_end(ledger)


def _resumed(store: MemoryStore) -> tuple[Ledger, ShardSet, dict[str, Any]]:
    waited, listed = store.waited, store.requests["list"]
    with _costing() as cost:
        ledger = Ledger.open(Folder.of(store, "simulated://job"))
        done = ledger.committed()
    waits = (store.waited - waited) / LIST_THREADS
    return ledger, done, {
        "seconds": cost.seconds + waits,
        "store_seconds": waits,  # what the store would have taken, with so many requests at a time
        "cpu_seconds": cost.cpu,
        "lists": store.requests["list"] - listed,
        "shards_done": len(done),
        "peak_bytes": cost.peak_bytes,  # the store in this process included
        "grown_bytes": cost.grown,
    }  # fmt: skip


def _curve(intervals: np.ndarray[Any, Any], workers: int, stop: float) -> list[list[float]]:
    """Hours, the share of workers whose work counted, shards done."""
    edges = np.linspace(0, stop, CURVE_POINTS + 1)
    ended = np.sort(intervals[:, 1])
    return [
        [high / HOUR, useful_share(intervals, workers, low, high), int(np.searchsorted(ended, high, side="right"))]
        for low, high in zip(edges.tolist()[:-1], edges.tolist()[1:], strict=True)
    ]


# --- the end ----------------------------------------------------------------------------------------------------------


def _driver_end(ledger: Ledger) -> dict[str, Any]:
    """What the driver itself does at the end of all shards, with reports as workers would send them."""
    count = partitions(ledger.plan.rows)
    part = Part(name="p", bytes=1, rows=1, sha256="")

    def report(task: Task) -> Any:
        match task:
            case Gather():
                shards = len(ledger.plan.range(task.range))
                tally = replace(Tally.of([]), shards=shards, busy=((EPOCH, EPOCH + 1),))
                ends = np.arange(1, count + 1, dtype=np.int64)
                return Gathered(task.range, tally, part, None, Grouped(name="i", ends=ends))
            case Compare():
                return Grouped(name="d", ends=np.zeros(len(task.slices), np.int64))
            case _:
                return part

    tasks = 0

    def work(asked: Sequence[Task]) -> list[Any]:
        nonlocal tasks
        tasks += len(asked)
        return [report(task) for task in asked]

    with _costing() as cost:
        finalise(ledger, work)
    return {"tasks": tasks, "seconds": cost.seconds, "peak_bytes": cost.peak_bytes, "grown_bytes": cost.grown}


def _finished(options: argparse.Namespace) -> dict[str, Any]:
    """Workers' tasks of the end, one after the other in this process, of some ranges with real parts of the index."""
    store = MemoryStore(Latency())
    ledger = committed_job(store, options.finish_ranges * RANGE_SHARDS, options.finish_rows)
    finisher = Finisher(ledger)
    seconds: dict[str, list[float]] = {}

    def timed(task: Task) -> Any:
        begun = time.perf_counter()
        done = finisher.run(task)
        seconds.setdefault(type(task).__name__, []).append(time.perf_counter() - begun)
        return done

    with _costing() as cost:
        summary = finalise(ledger, lambda tasks: [timed(task) for task in tasks])
    return {
        "shards": len(ledger.plan),
        "rows": ledger.plan.rows,
        "doubled": summary.duplicates,
        "seconds": cost.seconds,
        "gather_seconds": max(seconds[Gather.__name__]),
        "compare_seconds": max(seconds[Compare.__name__]),
        "join_seconds": max(seconds[Join.__name__]),
        "card_seconds": max(seconds[Describe.__name__]),
        "peak_bytes": cost.peak_bytes,
        "grown_bytes": cost.grown,
        "rows_per_range": ledger.plan.rows // options.finish_ranges,
    }


if __name__ == "__main__":
    sys.exit(main())
