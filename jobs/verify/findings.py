"""What is wrong with an output, and what was looked at."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

MAX_FINDINGS = 1_000  # kept; all are counted


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong.

    Codes: ``record``, ``missing_file``, ``damaged_file``, ``unreadable_file``, ``index``, ``audio``, ``length``,
    ``ids``, ``row_missing``, ``row_twice``, ``row_unknown``, ``failures``, ``missing_shard``, ``table``, ``tokens``,
    ``totals``, ``stray``.
    """

    code: str
    where: str  # a file of the output, or a shard
    message: str


@dataclass(kw_only=True, slots=True)
class Verification:
    """What ``verify`` found."""

    finished: bool
    shards_total: int
    shards_checked: int = 0
    rows_checked: int = 0  # clips that were decoded, or rows whose tokens were looked at
    looked_at: str = "clips decoded"  # what these rows are
    damage: int = 0  # number of findings
    findings: list[Finding] = field(default_factory=list)  # the first thousand
    notes: list[str] = field(default_factory=list)  # what could not be checked, or is not finished

    @property
    def exit_code(self) -> int:
        """0 when what is there is whole, else 1."""
        return 1 if self.damage else 0

    def add(self, found: Iterator[Finding]) -> None:
        """Counts findings and keeps the first ones."""
        for finding in found:
            self.damage += 1
            if len(self.findings) < MAX_FINDINGS:
                self.findings.append(finding)

    def note(self, text: str) -> None:
        """Keeps what is no damage, once."""
        if text not in self.notes:
            self.notes.append(text)
