"""Damaged manifests by the thousand: ``python -m tests.fuzz --seconds 60 --seed 1``.

Each case is a good Parquet manifest of some kind with one to three faults, all of which follow from the case's number.
It is scanned, planned, read shard by shard, checked row by row and written out again. What is fit for use must come out
whole, and everything else be an `InputError`: no other exception, no crash, no case that takes seconds or gigabytes.

Cases run in a child process under a limit of memory. The number of the case in hand is on disk before it
begins, so that a child that dies or hangs names it; ``--case N`` runs that one alone, with its traceback.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa

from jobs.errors import InputError
from jobs.formats.formats import FORMATS
from jobs.formats.writers import Sound, stored_columns
from jobs.ledger.tables import failures_table
from jobs.manifest import manifest as manifest_module
from jobs.manifest.manifest import Manifest
from jobs.manifest.rows import check_rows
from jobs.parquet import pages as pages_module
from jobs.plan import make_plan
from tests.jobs.forged_parquet import (
    BINARY,
    I32,
    I64,
    LIST,
    STRUCT,
    Page,
    Struct,
    footer_of,
    parquet,
    rebuilt,
    with_footer,
)

# Bytes that may really be in use. Of what is asked for and never touched, there may be any number: damaged lengths of
# texts are believed until the first one is read.
MEMORY, FILES_MEMORY = 1 << 30, 2 << 30
ADDRESS_SPACE = 64 << 30
WATCH_SECONDS = 0.02
CASE_SECONDS = 20.0
CASES = 1_000_000  # of one seed
# Small, so that what is bounded by them fits into the memory many times, and what is not does not.
LIMITS = {"MOST_AT_ONCE": 64 << 20, "MOST_PAGE_BYTES": 16 << 20, "MOST_VALUES": 1 << 21}
MOST_READ = 256 << 20

NASTY = (0, 1, -1, 2, 7, 127, 255, 2**15, 2**24, 2**31 - 1, -(2**31), 2**31, 2**40, 2**62, -(2**63), 2**63 - 1)


class Unfit(Exception):
    """A case that went otherwise than it may."""


# --- manifests --------------------------------------------------------------------------------------------------------


def good_manifest(rng: random.Random) -> bytes:
    """A manifest of some dozens of rows, in one of the many ways to store it."""
    count = rng.randint(1, 60)
    ids = [
        f"row-{n:04d}" if rng.random() < 0.9 else rng.choice(["", "a/../b", "é" * 40, "x" * 2_000])
        for n in range(count)
    ]
    kind = rng.choice([pa.int16(), pa.int32(), pa.uint32(), pa.int64(), pa.uint64()])
    container = rng.choice([pa.list_, pa.large_list])
    tokens = [[rng.randrange(6561) for _ in range(rng.randint(0, 30))] for _ in range(count)]
    columns = {
        "id": pa.array(ids, rng.choice([pa.string(), pa.large_string()])),
        "tokens": pa.array([row if rng.random() < 0.95 else None for row in tokens], container(kind)),
        "voice_id": pa.array([rng.choice(["anna", "bert", None]) for _ in range(count)], pa.string()),
        "text": pa.array([rng.choice(["hello", "world" * 50, None]) for _ in range(count)], pa.string()),
        "seed": pa.array([rng.choice([1, 2**62, None]) for _ in range(count)], pa.int64()),
        "tags": pa.array([[{"k": "v", "n": 1.5}] * rng.randint(0, 3) for _ in range(count)]),
        "raw": pa.array([rng.randbytes(4) for _ in range(count)], pa.binary(4)),
    }
    if rng.random() < 0.3:
        columns["text"] = columns["text"].dictionary_encode()
    options = {
        "compression": rng.choice(["none", "snappy", "zstd", "gzip", "lz4", "brotli"]),
        "use_dictionary": rng.random() < 0.5,
        "data_page_version": rng.choice(["1.0", "2.0"]),
        "row_group_size": rng.choice([7, 20, 1_000]),
        "data_page_size": rng.choice([64, 1 << 20]),
        "write_page_index": rng.random() < 0.3,
        "store_schema": rng.random() < 0.8,
    }
    if not options["use_dictionary"] and rng.random() < 0.5:
        options["column_encoding"] = {
            "id": rng.choice(["DELTA_BYTE_ARRAY", "DELTA_LENGTH_BYTE_ARRAY"]),
            "seed": "DELTA_BINARY_PACKED",
        }
    return parquet(pa.table(columns), **options)


# --- faults -----------------------------------------------------------------------------------------------------------


def flipped(data: bytes, rng: random.Random) -> bytes:
    """Some bits turned over, anywhere."""
    return _flipped_between(data, rng, 0, len(data))


def footer_flipped(data: bytes, rng: random.Random) -> bytes:
    """Some bits of the footer turned over."""
    return _flipped_between(data, rng, _footer_start(data), len(data) - 8)


def _flipped_between(data: bytes, rng: random.Random, start: int, stop: int) -> bytes:
    changed = bytearray(data)
    for _ in range(rng.choice([1, 1, 2, 8])):
        changed[rng.randrange(start, stop)] ^= 1 << rng.randrange(8)
    return bytes(changed)


def truncated(data: bytes, rng: random.Random) -> bytes:
    """The end is missing, or bytes in the middle are."""
    if rng.random() < 0.3:
        return data[: rng.randrange(len(data))]
    start = rng.randrange(_footer_start(data))
    return data[:start] + data[start + rng.choice([1, 4, 100, 1_000]) :]


def overwritten(data: bytes, rng: random.Random) -> bytes:
    """A run of bytes is something else."""
    start, length = rng.randrange(len(data)), rng.choice([1, 8, 64, 512])
    fill = rng.choice([bytes(length), b"\xff" * length, rng.randbytes(length)])
    return (data[:start] + fill + data[start + length :])[: len(data)]


def pages_shuffled(data: bytes, rng: random.Random) -> bytes:
    """Column chunks hold each other's pages."""
    seen: list[Page] = []

    def change(chunk: int, pages: list[Page]) -> list[Page]:
        seen.extend(pages)
        return [rng.choice(seen) if rng.random() < 0.3 else page for page in pages]

    return rebuilt(data, change)


def pages_repeated(data: bytes, rng: random.Random) -> bytes:
    """Pages are missing, or are there twice."""
    return rebuilt(data, lambda chunk, pages: [page for page in pages for _ in range(rng.choice([0, 1, 1, 1, 2]))])


def pages_forged(data: bytes, rng: random.Random) -> bytes:
    """Page headers lie."""

    def change(chunk: int, pages: list[Page]) -> list[Page]:
        for page in pages:
            if rng.random() < 0.2:
                forge(page.header, rng)
        return pages

    return rebuilt(data, change)


def footer_forged(data: bytes, rng: random.Random) -> bytes:
    """The footer lies."""
    footer = footer_of(data)
    for _ in range(rng.choice([1, 1, 3])):
        forge(footer, rng)
    return with_footer(data, footer)


FAULTS: tuple[Callable[[bytes, random.Random], bytes], ...] = (
    *(flipped, footer_flipped, truncated, overwritten),
    *(pages_shuffled, pages_repeated, pages_forged, footer_forged),
)


def forge(struct: Struct, rng: random.Random) -> None:
    """Gives one field of a struct, at any depth, a value that it should not have."""
    fields = [field for field in struct if struct[field][0] in (I32, I64, BINARY, LIST, STRUCT)]
    if not fields:
        return
    field = rng.choice(fields)
    kind, value = struct[field]
    if kind in (I32, I64):
        nasty = rng.choice([*NASTY, value + 1, value - 1, value * 2])
        half = 2 ** (31 if kind == I32 else 63)
        struct[field] = (kind, (nasty + half) % (2 * half) - half)
    elif kind == BINARY:
        struct[field] = (kind, rng.choice([b"", b"\xff\xfe", b"tokens", b"id", value * 2, value[:-1]]))
    elif kind == STRUCT:
        forge(value, rng)
    else:
        _forge_list(struct, field, rng)


def _forge_list(struct: Struct, field: int, rng: random.Random) -> None:
    kind, (inner, items) = struct[field]
    if items and inner == STRUCT and rng.random() < 0.9:
        forge(rng.choice(items), rng)
    else:
        changed = rng.choice([[], items[:-1], items[1:], items * 2, items[::-1]])
        struct[field] = (kind, (inner, changed))


def _footer_start(data: bytes) -> int:
    return max(1, len(data) - 8 - int.from_bytes(data[-8:-4], "little"))


def case_bytes(case: int) -> bytes:
    """The damaged manifest of a number."""
    rng = random.Random(case)
    data = good_manifest(rng)
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        try:
            data = rng.choice(FAULTS)(data, rng)
        except (AssertionError, IndexError, KeyError, TypeError, ValueError, OverflowError, MemoryError):
            break  # the faults before have left nothing that could be taken apart
    return data


# --- one case ---------------------------------------------------------------------------------------------------------


def use(path: Path) -> str:
    """Takes a manifest through everything that a job does with it; says where it ended.

    Raises:
        Unfit: rows were lost or doubled.
    """
    try:
        manifest = Manifest.scan(str(path))
    except InputError:
        return "scan"
    plan = make_plan(manifest, 16)
    if plan.rows != manifest.rows:
        raise Unfit(f"{plan.rows} rows were planned of {manifest.rows}")
    for index in range(min(len(plan), 20)):
        shard = plan.shard(index)
        try:
            table = manifest.read(shard.spans)
        except InputError:
            return "read"
        if table.num_rows != shard.rows:
            raise Unfit(f"shard {index} has {table.num_rows} rows, {shard.rows} were planned")
        _use_rows(table, manifest.origins(shard.spans), path)
    return "used"


def _use_rows(table: pa.Table, origins: tuple[list[str], np.ndarray], path: Path) -> None:
    rows, failures = check_rows(table, job_seed=0, max_tokens=1_500)
    places = sorted([row.position for row in rows] + [failure.position for failure in failures])
    if places != list(range(table.num_rows)):
        raise Unfit(f"{table.num_rows} rows became {len(rows)} good ones and {len(failures)} failures")
    parquet(failures_table(failures, table, origins))
    columns = stored_columns(table, rows, keep_inputs=True)
    sound = Sound(suffix="flac", rate=24_000, samples=[960] * len(rows))
    for shard_format in FORMATS.values():
        shard_format.write(path.with_suffix(".shard"), columns, [b"clip"] * len(rows), sound)
        if shard_format.write_cuts is not None:
            shard_format.write_cuts(path.with_suffix(".cuts"), columns, sound)


# --- many cases -------------------------------------------------------------------------------------------------------


def run_child(first: int, count: int, seconds: float, folder: Path) -> Counter[str]:
    """Runs so many cases from a number on, or until the time is over; notes the one in hand."""
    watch_memory(MEMORY)
    for name, value in LIMITS.items():
        setattr(pages_module, name, value)
    manifest_module.MOST_READ = MOST_READ
    until = time.monotonic() + seconds
    ends: Counter[str] = Counter()
    for case in range(first, first + count):
        if time.monotonic() > until:
            break
        (folder / "case").write_text(str(case))
        path = folder / "manifest.parquet"
        path.write_bytes(case_bytes(case))
        ends[use(path)] += 1
    return ends


def hunt(seed: int, seconds: float, count: int = CASES) -> tuple[str, str | None]:
    """Runs cases in a child, so many or for so long.

    Returns:
        What became of them, and the case that went wrong with its error.
    """
    first = seed * CASES
    with tempfile.TemporaryDirectory(prefix="s3gen-fuzz-") as name:
        limits = ["--seconds", str(seconds), "--count", str(count)]
        command = [sys.executable, "-m", "tests.fuzz", "--child", name, "--case", str(first), *limits]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=seconds + CASE_SECONDS + 30)
            wrong = None if done.returncode == 0 else f"exit code {done.returncode}\n{done.stderr[-3000:]}"
            said = done.stdout
        except subprocess.TimeoutExpired:
            said, wrong = "", f"no end after {CASE_SECONDS:g} s"
        if wrong is not None:
            case = (Path(name) / "case").read_text() if (Path(name) / "case").exists() else "before the first"
            wrong = f"case {case}: {wrong}\nrun it alone: python -m tests.fuzz --case {case}"
    return said, wrong


def use_files(paths: list[Path]) -> None:
    """Takes manifests through a job, under the real limits; says after each where it ended, and the peak of memory."""
    watch_memory(FILES_MEMORY)
    for path in paths:
        began = time.process_time()
        end = use(path)
        peak = next(int(line.split()[1]) << 10 for line in status() if line.startswith("VmHWM"))
        say(json.dumps({"name": path.name, "end": end, "seconds": time.process_time() - began, "peak": peak}))


def watch_memory(most: int) -> None:
    """From now on this process ends when more bytes are in use."""
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE, ADDRESS_SPACE))

    def watch() -> None:
        while (used := int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()) <= most:
            time.sleep(WATCH_SECONDS)
        os.write(2, f"{used >> 20} MB of memory are in use; {most >> 20} are the most\n".encode())
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def status() -> list[str]:
    """What the system knows of this process."""
    return Path("/proc/self/status").read_text().splitlines()


def say(what: object) -> None:
    sys.stdout.write(f"{what}\n")
    sys.stdout.flush()


def main() -> int:
    parser = argparse.ArgumentParser(description="Damaged manifests by the thousand.")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--count", type=int, default=CASES, help="of cases, where the time suffices")
    parser.add_argument("--seed", type=int, default=0, help="where the cases begin: a million apart")
    parser.add_argument("--case", type=int, help="this one alone")
    parser.add_argument("--use", nargs="+", type=Path, metavar="FILE", help="these manifests, as they are")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.use is not None:
        use_files(given.use)
        return 0
    if given.child is not None:
        say(dict(run_child(given.case, given.count, given.seconds, Path(given.child))))
        return 0
    if given.case is not None:
        with tempfile.TemporaryDirectory(prefix="s3gen-fuzz-") as name:
            path = Path(name) / "manifest.parquet"
            path.write_bytes(case_bytes(given.case))
            say(use(path))
        return 0
    said, wrong = hunt(given.seed, given.seconds, given.count)
    say(wrong or said.strip())
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
