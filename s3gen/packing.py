"""Rows of different lengths laid end to end in time: no padding but two empty positions after each.

A causal convolution of three taps looks two positions back; where these are zero it cannot tell them from what is
before the beginning of a row. Layers that work on single positions need nothing, and attention stays within a row.

Shape letters: B rows, T positions of the longest, L packed positions of one copy, P = copies x L, C channels.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence

import torch
from torch import Tensor

from s3gen.ragged import length_mask, on_device

GAP = 2  # positions that a causal convolution of three taps looks back


class Packing:
    """Where each row lies.

    Args:
        lengths: B row lengths, each at least 1.
        device: where the index tensors go.
        copies: how often the whole lies there, one copy behind the other (guidance needs two).
        size: positions of a copy, when more than the rows need; what is over stays empty.

    Attributes:
        lengths: as given.
        starts: the first position of each row, in a copy.
        size: L.
        copies: as given.
        gaps: the positions of all copies (of P) at which there is no row, int64.

    Raises:
        ValueError: no rows, an empty row, or too small a size.
    """

    def __init__(
        self, lengths: Sequence[int], device: torch.device, *, copies: int = 1, size: int | None = None
    ) -> None:
        if not lengths or min(lengths) < 1:
            raise ValueError(f"rows of lengths {list(lengths)} cannot be packed: there must be rows, and none empty")
        *starts, used = itertools.accumulate((length + GAP for length in lengths), initial=0)
        self.lengths, self.starts, self.copies = list(lengths), starts, copies
        self.size = used if size is None else size
        if self.size < used:
            raise ValueError(f"rows that need {used} positions do not fit into {size}")
        self.device = device
        empty = torch.ones(self.size, dtype=torch.bool)
        for start, end in self._rows():
            empty[start:end] = False
        self.gaps = on_device(empty.repeat(copies).nonzero()[:, 0], device)

    def pack(self, rows: Sequence[Tensor]) -> Tensor:
        """B rows (at most their length, C) to one copy (L, C): each from its start on, zeros where nothing is."""
        blank = rows[0].new_zeros(1, rows[0].shape[1])
        pieces: list[Tensor] = []
        for row, start, following in zip(rows, self.starts, [*self.starts[1:], self.size], strict=True):
            pieces += [row, blank.expand(following - start - len(row), -1)]
        return torch.cat(pieces)

    def empty(self, packed: Tensor) -> Tensor:
        """One copy or all of them, (L or P, C), itself zero where there is no row."""
        gaps = self.gaps if len(packed) > self.size else self.gaps[: len(self.gaps) // self.copies]
        return packed.index_fill_(0, gaps, 0.0)

    def split(self, packed: Tensor) -> list[Tensor]:
        """One copy (L, C) to its rows (length, C), views of it."""
        return [packed[start:end] for start, end in self._rows()]

    def runs(self) -> list[tuple[int, int]]:
        """Begin and end of every row of every copy, of P positions."""
        return [
            (copy * self.size + start, copy * self.size + end)
            for copy in range(self.copies)
            for start, end in self._rows()
        ]

    @functools.cached_property
    def bounds(self) -> Tensor:
        """Where the runs end that cover all P positions, each a row or a gap: int32, from 0 to P.

        A gap is a run of its own, so that attention by runs never mixes it with a row. No run is longer than `longest`.
        """
        ends = [0]
        for start, end in self.runs():
            ends += range(ends[-1] + self.longest, start, self.longest)
            ends += [start, end] if start > ends[-1] else [end]
        ends += [*range(ends[-1] + self.longest, self.copies * self.size, self.longest), self.copies * self.size]
        return on_device(torch.tensor(ends, dtype=torch.int32), self.device)

    @property
    def longest(self) -> int:
        """The longest row."""
        return max(self.lengths)

    @functools.cached_property
    def padded(self) -> tuple[Tensor, Tensor | None]:
        """The packed position (of P) of every cell of the right-padded batch of all copies, and the batch's mask.

        The positions are (copies x B, T) int64; those of padding are any that exist.
        """
        begins = torch.tensor([start for start, _ in self.runs()])[:, None]
        cells = (begins + torch.arange(self.longest)).clamp(max=self.copies * self.size - 1)
        return on_device(cells, self.device), length_mask(self.lengths * self.copies, self.device)

    def _rows(self) -> list[tuple[int, int]]:
        return [(start, start + length) for start, length in zip(self.starts, self.lengths, strict=True)]
