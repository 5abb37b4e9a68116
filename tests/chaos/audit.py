"""What must hold of an output that was disturbed, held against one that was not.

Reads the files themselves, not by way of the code that wrote them: a row is found by its number, a column of the
manifest, and compared by its decoded samples.
"""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq

from jobs.storage.folders import Folder
from jobs.verify.verify import verify
from tests.chaos.stored import stored_rows

SHOWN = 5  # of many


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong.

    Codes: ``lost``, ``doubled``, ``unknown``, ``stray``, ``missing``, ``index``, ``changed``, ``failures``,
    ``duplicates``, ``made_again``, ``verify``; of processes: ``exit``, ``slow``, ``lease``, ``process``, ``scratch``.
    """

    code: str
    message: str
    count: int = 1  # of rows, shards or files

    def __str__(self) -> str:
        return f"{self.code}: {self.message}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Output:
    """All that a finished output holds.

    Attributes:
        made: number of the row and digest of its samples, for each row of each file in ``audio/``.
        failed: number of the row and reason, for each row of the failures table.
        files: in ``audio/``, with the rows of each.
        indexed: file, row in it and samples, for each row of the index.
        duplicates: file and row in it.
    """

    made: list[tuple[int, str]]
    failed: list[tuple[int, str]]
    files: dict[str, list[int]]  # samples of each row
    indexed: list[tuple[str, int, int]]
    duplicates: int

    @classmethod
    def read(cls, folder: Folder) -> Output:
        """Every file of ``audio/``, named by the index or not, and the three tables."""
        made: list[tuple[int, str]] = []
        files: dict[str, list[int]] = {}
        for name, rows in stored_rows(folder):
            made += [(number, digest) for number, digest, _ in rows]
            files[name] = [samples for _, _, samples in rows]
        failed = _table(folder, "failures.parquet")
        index = _table(folder, "index.parquet")
        has_duplicates = folder.exists("duplicates.parquet")
        return cls(
            made=made,
            failed=list(zip(failed["number"].to_pylist(), failed["error"].to_pylist(), strict=True)),
            files=files,
            indexed=list(zip(*(index[name].to_pylist() for name in ("shard", "row", "samples")), strict=True)),
            duplicates=_table(folder, "duplicates.parquet").num_rows if has_duplicates else 0,
        )


def audit(output: Output, reference: Output, rows: int) -> list[Finding]:
    """What is wrong with a finished output; ``rows`` is how many the manifest has."""
    return [*_rows(output, rows), *_files(output), *_samples(output, reference), *_bad_rows(output, reference)]


def made_again(before: Mapping[int, str], after: Mapping[int, str]) -> list[Finding]:
    """Shards that had been committed, and whose commit is another one now, or none: shard and attempt, twice."""
    changed = sorted(shard for shard, attempt in before.items() if after.get(shard) != attempt)
    if not changed:
        return []
    shown = ", ".join(f"{shard} ({before[shard]}, now {after.get(shard, 'gone')})" for shard in changed[:SHOWN])
    return [Finding("made_again", f"committed shards {shown} were made again", len(changed))]


def tried_again(committed: Iterable[int], tries: Mapping[str, int], later: Mapping[str, int]) -> list[Finding]:
    """Tries at shards that had been committed before: file name and shard, of all files then and now."""
    known = set(committed)
    names = sorted(name for name, shard in later.items() if shard in known and name not in tries)
    if not names:
        return []
    return [Finding("made_again", f"{_some(names)} are tries at shards that had been committed", len(names))]


def verified(folder: Folder) -> list[Finding]:
    """What ``s3gen verify`` finds."""
    found = verify(folder.url)
    findings = [Finding("verify", f"{each.where}: {each.code}: {each.message}") for each in found.findings]
    return [*findings, *(Finding("verify", note) for note in found.notes)]


def _rows(output: Output, rows: int) -> Iterator[Finding]:
    times = Counter(number for number, _ in (*output.made, *output.failed))
    lost = [number for number in range(rows) if not times[number]]
    doubled = [number for number in range(rows) if times[number] > 1]
    unknown = [number for number in times if not 0 <= number < rows]
    if lost:
        yield Finding("lost", f"rows {_some(lost)} are neither in the shards nor in the failures", len(lost))
    if doubled:
        yield Finding("doubled", f"rows {_some(doubled)} are there more than once", len(doubled))
    if unknown:
        yield Finding("unknown", f"rows {_some(unknown)} are none of the manifest's", len(unknown))


def _files(output: Output) -> Iterator[Finding]:
    named = {name for name, _, _ in output.indexed}
    if stray := sorted(output.files.keys() - named):
        yield Finding("stray", f"the index does not name {_some(stray)}", len(stray))
    if missing := sorted(named - output.files.keys()):
        yield Finding("missing", f"the index names {_some(missing)}", len(missing))
    there = Counter((name, row, size) for name in named for row, size in enumerate(output.files.get(name, ())))
    entries = Counter(entry for entry in output.indexed if entry[0] in output.files)
    if wrong := sorted(((there - entries) | (entries - there)).elements()):
        yield Finding("index", f"the index and the files differ in {_some(wrong)}", len(wrong))


def _samples(output: Output, reference: Output) -> Iterator[Finding]:
    wanted = dict(reference.made)
    changed = sorted({number for number, digest in output.made if wanted.get(number, digest) != digest})
    if changed:
        yield Finding("changed", f"the samples of rows {_some(changed)} are others than undisturbed", len(changed))


def _bad_rows(output: Output, reference: Output) -> Iterator[Finding]:
    there, wanted = set(output.failed), set(reference.failed)
    if wrong := sorted(there ^ wanted):
        yield Finding("failures", f"failed only here or only undisturbed: {_some(wrong)}", len(wrong))
    if output.duplicates != reference.duplicates:
        message = f"{output.duplicates} rows in duplicates.parquet, {reference.duplicates} undisturbed"
        yield Finding("duplicates", message)


def _table(folder: Folder, name: str) -> pa.Table:
    return pq.read_table(io.BytesIO(folder.read(name)))


def _some(items: Iterable[object]) -> str:
    listed = list(items)
    more = f" and {len(listed) - SHOWN} more" if len(listed) > SHOWN else ""
    return ", ".join(str(item) for item in listed[:SHOWN]) + more
