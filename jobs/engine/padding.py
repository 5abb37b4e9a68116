"""What padded parts of the model compute for a batch, and how much of it is padding: from lengths alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from s3gen.constants import FRAMES_PER_TOKEN
from s3gen.ragged import group_size, plan_batches


@dataclass(slots=True)
class Padding:
    """Positions that a part of the model computes, and how many of them are padding."""

    positions: int = 0
    padding: int = 0

    def add(self, other: Padding) -> None:
        """More of them."""
        self.positions += other.positions
        self.padding += other.padding

    @property
    def share(self) -> float:
        """The padding among them: 0 to 1."""
        return self.padding / self.positions if self.positions else 0.0


def grouped(lengths: Sequence[int], device_type: str) -> Padding:
    """Of a part that takes a batch's rows in groups of like length, each padded to its longest row.

    Args:
        lengths: of the rows, in the part's own positions.
        device_type: "cuda" or "cpu".
    """
    groups = plan_batches(lengths, group_size(device_type))
    positions = sum(len(rows) * max(lengths[row] for row in rows) for rows in groups)
    return Padding(positions, positions - sum(lengths))


def vocoded(tokens: Sequence[int], device_type: str) -> Padding:
    """Of the vocoder, in frames.

    Args:
        tokens: of the rows of a batch, without their prompts.
        device_type: "cuda" or "cpu".
    """
    return grouped([FRAMES_PER_TOKEN * count for count in tokens], device_type)
