"""Rows of different lengths laid end to end in time: no padding but two empty positions after each.

A causal convolution of three taps looks two positions back; where these are zero it cannot tell them from what is
before the beginning of a row. Layers that work on single positions need nothing, and attention stays within a row.

Shape letters: B rows, T positions of the longest, L packed positions of one copy, P = copies x L, C channels.
"""

from __future__ import annotations

import copy
import functools
import itertools
from collections.abc import Sequence

import torch
from torch import Tensor

from s3gen.ragged import length_mask, on_device

GAP = 2  # positions that a causal convolution of three taps looks back

# Of rounded packings: steps of the size, as a share of the power of two below it, at least; and of the longest row.
_STEPS_PER_OCTAVE, _LEAST_STEP = 16, 64
_LONGEST_STEP = 128


class Packing:
    """Where each row lies.

    Args:
        lengths: B row lengths, each at least 1.
        device: where the index tensors go.
        copies: how often the whole lies there, one copy behind the other (guidance needs two).
        rounded: sizes and shapes are rounded up, by a sixteenth at most, so that batches of much the same size have
            the same ones; what is over stays empty.

    Attributes:
        lengths: as given.
        starts: the first position of each row, in a copy.
        size: L.
        copies, rounded: as given.
        longest: T, or somewhat more when rounded.
        gaps: the positions of all copies (of P) at which there is no row, int64; a rounded one repeats the last.
        shape: what batches of the same rounded shape have in common.

    Raises:
        ValueError: no rows, or an empty one.
    """

    def __init__(self, lengths: Sequence[int], device: torch.device, *, copies: int = 1, rounded: bool = False) -> None:
        if not lengths or min(lengths) < 1:
            raise ValueError(f"rows of lengths {list(lengths)} cannot be packed: there must be rows, and none empty")
        *starts, used = itertools.accumulate((length + GAP for length in lengths), initial=0)
        self.lengths, self.starts, self.copies, self.device = list(lengths), starts, copies, device
        self.rounded = rounded
        self.size, self.longest = used, max(lengths)
        gaps = runs = 0
        if rounded:
            step = max(_LEAST_STEP, (1 << used.bit_length() - 1) // _STEPS_PER_OCTAVE)
            rows = 1 << (len(lengths) - 1).bit_length()
            self.size, self.longest = _up(used, step), _up(self.longest, _LONGEST_STEP)
            gaps = copies * (step + GAP * rows)
            runs = copies * (2 * rows + step // _LONGEST_STEP + 2)
        self.gaps = on_device(_filled(self._gaps(), gaps), device)
        self._runs_at_least = runs
        self.shape = (copies, self.size, self.longest, len(self.gaps), runs)

    def pack(self, rows: Sequence[Tensor]) -> Tensor:
        """B rows (at most their length, C) to one copy (L, C): each from its start on, zeros where nothing is."""
        blank = rows[0].new_zeros(1, rows[0].shape[1])
        pieces: list[Tensor] = []
        for row, start, following in zip(rows, self.starts, [*self.starts[1:], self.size], strict=True):
            pieces += [row, blank.expand(following - start - len(row), -1)]
        return torch.cat(pieces)

    def empty(self, packed: Tensor) -> Tensor:
        """All copies (P, C), zero where there is no row; in place."""
        return packed.index_fill_(0, self.gaps, 0.0)

    def split(self, packed: Tensor) -> list[Tensor]:
        """One copy (L, C) to its rows (length, C), views of it."""
        return [packed[start:end] for start, end in self._rows()]

    def runs(self) -> list[tuple[int, int]]:
        """Begin and end of every row of every copy, of P positions."""
        copies = range(0, self.copies * self.size, self.size)
        return [(first + start, first + end) for first in copies for start, end in self._rows()]

    @functools.cached_property
    def bounds(self) -> Tensor:
        """Where the runs end that cover all P positions, each a row or a gap: int32, from 0 to P.

        A gap is a run of its own, so that attention by runs never mixes it with a row. No run is longer than `longest`.
        A rounded packing has empty runs at the end.
        """
        ends = [0]
        for start, end in self.runs():
            ends += range(ends[-1] + self.longest, start, self.longest)
            ends += [start, end] if start > ends[-1] else [end]
        ends += [*range(ends[-1] + self.longest, self.copies * self.size, self.longest), self.copies * self.size]
        return on_device(_filled(torch.tensor(ends, dtype=torch.int32), self._runs_at_least + 1), self.device)

    @functools.cached_property
    def padded(self) -> tuple[Tensor, Tensor | None, Tensor]:
        """The rows of all copies as a right-padded batch.

        Returns:
            The packed position of every cell, (copies x B, T) int64, any that exists in the padding; the batch's mask;
            and which cells of the flattened batch are no padding, int64.
        """
        begins = torch.tensor([start for start, _ in self.runs()])[:, None]
        columns = torch.arange(max(self.lengths))
        cells = (begins + columns).clamp(max=self.copies * self.size - 1)
        real = (columns < torch.tensor(self.lengths * self.copies)[:, None]).flatten().nonzero()[:, 0]
        mask = length_mask(self.lengths * self.copies, self.device)
        return on_device(cells, self.device), mask, on_device(real, self.device)

    def with_indices(self, gaps: Tensor, bounds: Tensor) -> Packing:
        """A packing of the same shape whose `gaps` and `bounds` are read from these tensors."""
        other = copy.copy(self)
        other.gaps = gaps
        other.__dict__["bounds"] = bounds
        return other

    def _rows(self) -> list[tuple[int, int]]:
        return [(start, start + length) for start, length in zip(self.starts, self.lengths, strict=True)]

    def _gaps(self) -> Tensor:
        empty = torch.ones(self.size, dtype=torch.bool)
        for start, end in self._rows():
            empty[start:end] = False
        return empty.repeat(self.copies).nonzero()[:, 0]


def _up(value: int, step: int) -> int:
    return -(-value // step) * step


def _filled(values: Tensor, length: int) -> Tensor:
    """The values, the last one repeated up to a length."""
    return torch.cat((values, values[-1:].expand(max(0, length - len(values)))))
