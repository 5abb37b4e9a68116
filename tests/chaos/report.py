"""What a campaign has shown, as Markdown for a reader and JSON for a program."""

from __future__ import annotations

import os
import platform
import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

from tests.chaos.campaign import Result
from tests.chaos.faults import Kind
from tests.chaos.job import Blow

HEAD = (
    "fault",
    "times tried",
    "rows lost",
    "rows doubled",
    "shards made again",
    "seconds repeated",
    "median seconds to the next commit",
)


def as_markdown(result: Result, circumstances: dict[str, Any]) -> str:
    """A table, a line per kind of fault, between what it was measured with and what was found wrong."""
    lines = [", ".join(f"{name} {value}" for name, value in circumstances.items())]
    lines += [
        f"{result.rows} rows in {result.shards} shards; {result.kills} SIGKILLs, {len(result.blows)} faults, "
        f"{result.drivers} drivers, {result.jobs} {'job' if result.jobs == 1 else 'jobs'}; {result.seconds:.0f} s, "
        f"undisturbed {result.undisturbed_seconds:.0f} s",
        "",
        _line(HEAD),
        _line(["---", *["---:"] * (len(HEAD) - 1)]),
    ]
    kinds = [kind for kind in Kind if any(blow.kind is kind for blow in result.blows)]
    lost, doubled = (_rows(result, code) for code in ("lost", "doubled"))
    # Rows are counted at the end of the job: nobody knows then which of its faults had lost one.
    each = ["?" if count else "0" for count in (lost, doubled)]
    lines += [_line(_cells(kind, [blow for blow in result.blows if blow.kind is kind], *each)) for kind in kinds]
    lines.append(_line(_cells("all", result.blows, str(lost), str(doubled))))
    lines += ["", *(f"no occasion came for: {kind} ({count} times)" for kind, count in result.missed.items())]
    lines += [f"WRONG {finding}" for finding in result.findings] or ["nothing is wrong"]
    return "\n".join(lines) + "\n"


def as_json(result: Result, circumstances: dict[str, Any]) -> dict[str, Any]:
    """The same, with each fault by itself."""
    # A counter's keys are more than asdict can bear.
    plain = {**asdict(replace(result, missed=Counter())), "missed": dict(result.missed)}
    return {**circumstances, "kills": result.kills, **plain}


def machine() -> str:
    """Of this campaign."""
    return f"{os.cpu_count()} cores, {platform.system()} {platform.machine()}, Python {platform.python_version()}"


def _cells(name: str, blows: Sequence[Blow], lost: str, doubled: str) -> list[str]:
    pauses = [blow.pause for blow in blows if blow.pause is not None]
    return [
        name,
        str(len(blows)),
        lost,
        doubled,
        str(sum(blow.made_again for blow in blows)),
        f"{sum(blow.repeated for blow in blows):.1f}",
        f"{statistics.median(pauses):.1f}" if pauses else "",
    ]


def _rows(result: Result, code: str) -> int:
    return sum(finding.count for finding in result.findings if finding.code == code)


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
