"""Ragged batches: rows of different lengths, padded on the right, and the masks that keep padding out.

Shape letters: B rows, T positions.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def length_mask(lengths: Sequence[int], device: torch.device) -> Tensor | None:
    """Where a right-padded batch holds data: (B, T) bool with T the longest, or None when every row is as long.

    None lets the layers skip the mask altogether; a mask of all True would give the same numbers.
    """
    if min(lengths) == max(lengths):
        return None
    columns = torch.arange(max(lengths), device=device)
    return columns[None, :] < torch.tensor(lengths, device=device)[:, None]


def zero_padding(x: Tensor, mask: Tensor | None) -> Tensor:
    """`x` (B, C, T) with zeros where `mask` (B, T) is False. Padding must be finite: 0 x NaN is NaN."""
    return x if mask is None else x * mask[:, None, :].to(x.dtype)


def pad_rows(rows: Sequence[Tensor]) -> Tensor:
    """Rows of (T_i, ...) side by side, padded with zeros on the right: (B, T, ...)."""
    return torch.nn.utils.rnn.pad_sequence(list(rows), batch_first=True)


def plan_batches(lengths: Sequence[int], max_frames: int) -> list[list[int]]:
    """Group rows into padded batches of at most `max_frames` cells, like lengths together, longest first.

    Args:
        lengths: each row's length (frames, prompt included).
        max_frames: rows x longest row of a batch; a row that is longer on its own is a batch of one.

    Returns:
        Row numbers per batch. It follows from the arguments alone; rows of equal length keep their order.

    Raises:
        ValueError: `max_frames` below 1.
    """
    if max_frames < 1:
        raise ValueError(f"max_frames is {max_frames}, but a batch needs at least one frame")
    batches: list[list[int]] = []
    widest = 0
    for row in sorted(range(len(lengths)), key=lambda row: -lengths[row]):
        if not batches or (len(batches[-1]) + 1) * widest > max_frames:
            batches.append([])
            widest = lengths[row]
        batches[-1].append(row)
    return batches
